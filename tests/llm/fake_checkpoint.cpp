#include "tests/llm/fake_checkpoint.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace longview::test {
namespace {

using nlohmann::json;

std::uint64_t bytes_of(const FakeTensor& tensor) {
    std::uint64_t bytes = tensor.dtype == "F32" ? 4 : 2;
    for (const std::int64_t extent : tensor.shape) bytes *= static_cast<std::uint64_t>(extent);
    return bytes;
}

std::string shard_name(int shard, int shards) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", shard, shards);
    return name;
}

/// Splits in order into `shards` runs of about equal bytes, none empty.
std::vector<std::vector<FakeTensor>> split(const llm::ModelConfig& config, int shards) {
    std::vector<FakeTensor> all;
    for (llm::TensorSpec& spec : llm::expected_tensors(config)) {
        all.push_back({std::move(spec.name), "BF16", std::move(spec.shape)});
    }
    std::uint64_t left = data_bytes(all);
    std::vector<std::vector<FakeTensor>> out(static_cast<std::size_t>(shards));
    std::size_t next = 0;
    for (std::size_t shard = 0; shard < out.size(); ++shard) {
        const std::size_t shards_after = out.size() - shard - 1;
        const std::uint64_t share = left / (shards_after + 1);
        std::uint64_t taken = 0;
        while (all.size() - next > shards_after &&
               (taken < share || out[shard].empty() || shards_after == 0)) {
            taken += bytes_of(all[next]);
            out[shard].push_back(std::move(all[next++]));
        }
        left -= taken;
    }
    return out;
}

/// Writes configuration, index and one file a shard; `fill` gives a tensor's bytes, or nothing to
/// leave a hole.
template <typename Fill>
void write_checkpoint(const std::filesystem::path& folder, const llm::ModelConfig& config,
                      int shards, const Fill& fill) {
    std::filesystem::create_directories(folder);
    write_file(folder / "config.json", config_json(config));
    write_file(folder / "preprocessor_config.json", preprocessor_json(config));
    json weight_map = json::object();
    std::uint64_t total = 0;
    const auto runs = split(config, shards);
    for (std::size_t shard = 0; shard < runs.size(); ++shard) {
        const std::string name = shard_name(static_cast<int>(shard), shards);
        const std::string prefix = safetensors_prefix(runs[shard]);
        std::string contents = prefix;
        for (const FakeTensor& tensor : runs[shard]) {
            weight_map[tensor.name] = name;
            contents += fill(tensor);
        }
        write_file(folder / name, contents);
        std::filesystem::resize_file(folder / name, prefix.size() + data_bytes(runs[shard]));
        total += data_bytes(runs[shard]);
    }
    const json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    write_file(folder / "model.safetensors.index.json", index.dump(1));
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    /// Uniform in [-1, 1).
    double next() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
        return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1.0;
    }

  private:
    std::uint64_t state_;
};

std::string random_weights(const FakeTensor& tensor, Random& random) {
    const bool is_gain =
        tensor.name.find("norm") != std::string::npos && tensor.name.ends_with(".weight");
    const bool is_embedding = tensor.name.find("embed") != std::string::npos;
    double columns = 1.0;
    for (std::size_t i = 1; i < tensor.shape.size(); ++i) {
        columns *= static_cast<double>(tensor.shape[i]);
    }
    // Uniform in [-a, a] has variance a^2 / 3.
    double amplitude = std::sqrt(3.0 / columns);
    if (is_embedding) amplitude = 1.0;
    if (is_gain || tensor.shape.size() == 1) amplitude = 0.25;
    const std::uint64_t count = bytes_of(tensor) / 2;
    std::string bytes;
    bytes.reserve(count * 2);
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto value = static_cast<float>((is_gain ? 1.0 : 0.0) + amplitude * random.next());
        // Cut off to BF16: random numbers need no rounding.
        const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) >> 16;
        bytes += static_cast<char>(bits & 0xFF);
        bytes += static_cast<char>(bits >> 8);
    }
    return bytes;
}

json grids_json(const llm::ModelConfig& config) {
    json grids = json::array();
    for (const vision::Size& grid : config.preprocess.grids) {
        grids.push_back({grid.width, grid.height});
    }
    return grids;
}

json text_json(const llm::TextConfig& text) {
    json kinds = json::array();
    for (const llm::AttentionKind kind : text.attn_type_list) {
        kinds.push_back(static_cast<int>(kind));
    }
    return {{"model_type", "minimax_text_01"},
            {"attn_type_list", kinds},
            {"head_dim", text.head_dim},
            {"hidden_act", "silu"},
            {"hidden_size", text.hidden_size},
            {"intermediate_size", text.intermediate_size},
            {"layernorm_full_attention_alpha", text.layernorm_full_attention_alpha},
            {"layernorm_full_attention_beta", text.layernorm_full_attention_beta},
            {"layernorm_linear_attention_alpha", text.layernorm_linear_attention_alpha},
            {"layernorm_linear_attention_beta", text.layernorm_linear_attention_beta},
            {"layernorm_mlp_alpha", text.layernorm_mlp_alpha},
            {"layernorm_mlp_beta", text.layernorm_mlp_beta},
            {"num_attention_heads", text.num_attention_heads},
            {"num_experts_per_tok", text.num_experts_per_tok},
            {"num_hidden_layers", text.num_hidden_layers},
            {"num_key_value_heads", text.num_key_value_heads},
            {"num_local_experts", text.num_local_experts},
            {"postnorm", true},
            {"rms_norm_eps", text.rms_norm_eps},
            {"rope_theta", text.rope_theta},
            {"rotary_dim", text.rotary_dim},
            {"shared_intermediate_size", {0}},
            {"tie_word_embeddings", false},
            {"vocab_size", text.vocab_size}};
}

json vision_json(const vision::VisionConfig& vision) {
    return {{"model_type", "clip_vision_model"},
            {"hidden_size", vision.hidden_size},
            {"intermediate_size", vision.intermediate_size},
            {"num_hidden_layers", vision.num_hidden_layers},
            {"num_attention_heads", vision.num_attention_heads},
            {"num_channels", vision.num_channels},
            {"image_size", vision.image_size},
            {"patch_size", vision.patch_size},
            {"hidden_act", "gelu"},
            {"layer_norm_eps", vision.layer_norm_eps}};
}

}  // namespace

llm::ModelConfig published_config() {
    return llm::load_config(LONGVIEW_TEST_DATA "/minimax-vl-01");
}

llm::ModelConfig tiny_config(int layers) {
    llm::ModelConfig config;
    llm::TextConfig& text = config.text;
    text.hidden_size = 64;
    text.num_hidden_layers = layers;
    text.num_attention_heads = 4;
    text.num_key_value_heads = 2;
    text.head_dim = 16;
    text.rotary_dim = 8;
    text.rope_theta = 10'000'000.0;
    text.intermediate_size = 48;
    text.num_local_experts = 4;
    text.num_experts_per_tok = 2;
    text.vocab_size = 96;
    text.rms_norm_eps = 1e-5F;
    for (int layer = 0; layer < layers; ++layer) {
        text.attn_type_list.push_back(static_cast<llm::AttentionKind>(layer % 2));
    }
    text.layernorm_linear_attention_alpha = 1.75F;
    text.layernorm_linear_attention_beta = 1.0F;
    text.layernorm_full_attention_alpha = 1.6875F;
    text.layernorm_full_attention_beta = 1.0625F;
    text.layernorm_mlp_alpha = 1.625F;
    text.layernorm_mlp_beta = 0.9375F;
    vision::VisionConfig& vision = config.vision;
    vision.hidden_size = 32;
    vision.intermediate_size = 64;
    vision.num_hidden_layers = 1;
    vision.num_attention_heads = 2;
    vision.num_channels = 3;
    vision.image_size = 28;
    vision.patch_size = 14;
    vision.layer_norm_eps = 1e-5F;
    vision.text_hidden_size = text.hidden_size;
    vision::PreprocessConfig& preprocess = config.preprocess;
    preprocess.tile_size = vision.image_size;
    preprocess.patch_size = vision.patch_size;
    preprocess.mean = {0.48145466F, 0.4578275F, 0.40821073F};
    preprocess.std = {0.26862954F, 0.26130258F, 0.27577711F};
    preprocess.grids = {{28, 28}, {28, 56}, {56, 28}, {56, 56}};
    config.image_token_index = 95;
    return config;
}

std::string config_json(const llm::ModelConfig& config) {
    const json document = {{"architectures", {"MiniMaxVL01ForConditionalGeneration"}},
                           {"model_type", "minimax_vl_01"},
                           {"image_grid_pinpoints", grids_json(config)},
                           {"image_token_index", config.image_token_index},
                           {"projector_hidden_act", "gelu"},
                           {"process_image_mode", "anyres"},
                           {"vision_feature_layer", -1},
                           {"vision_feature_select_strategy", "default"},
                           {"text_config", text_json(config.text)},
                           {"vision_config", vision_json(config.vision)}};
    return document.dump(2);
}

std::string preprocessor_json(const llm::ModelConfig& config) {
    const json document = {{"process_image_mode", "anyres"},
                           {"size", {config.preprocess.tile_size, config.preprocess.tile_size}},
                           {"patch_size", config.preprocess.patch_size},
                           {"image_mean", config.preprocess.mean},
                           {"image_std", config.preprocess.std},
                           {"image_grid_pinpoints", grids_json(config)}};
    return document.dump(2);
}

std::string safetensors_prefix(std::span<const FakeTensor> tensors) {
    std::string text = R"({"__metadata__":{"format":"pt"})";
    std::uint64_t offset = 0;
    for (const FakeTensor& tensor : tensors) {
        const std::uint64_t end = offset + bytes_of(tensor);
        const json entry = {
            {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
        text += "," + json(tensor.name).dump() + ":" + entry.dump();
        offset = end;
    }
    text += "}";
    text.append((8 - text.size() % 8) % 8, ' ');
    std::string prefix;
    for (int i = 0; i < 8; ++i) {
        prefix += static_cast<char>(static_cast<std::uint64_t>(text.size()) >> (8 * i) & 0xFF);
    }
    return prefix + text;
}

std::uint64_t data_bytes(std::span<const FakeTensor> tensors) {
    std::uint64_t bytes = 0;
    for (const FakeTensor& tensor : tensors) bytes += bytes_of(tensor);
    return bytes;
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path.string());
}

void write_sparse_checkpoint(const std::filesystem::path& folder, const llm::ModelConfig& config,
                             int shards) {
    write_checkpoint(folder, config, shards, [](const FakeTensor&) { return std::string(); });
}

void make_tiny_checkpoint(const std::filesystem::path& folder, const llm::ModelConfig& config,
                          std::uint64_t seed, int shards) {
    Random random(seed);
    write_checkpoint(folder, config, shards,
                     [&](const FakeTensor& tensor) { return random_weights(tensor, random); });
}

}  // namespace longview::test

#include "llm/checkpoint/fingerprint.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "kernels/runtime/error.h"

namespace longview::llm {
namespace {

constexpr std::size_t kSampledTensors = 1024;
constexpr std::size_t kSampleBytes = 4096;

/// The values as text, floats in full precision, each followed by a separator.
class Values {
  public:
    void add(std::int64_t value) { text_ += std::to_string(value) + ';'; }
    void add(int value) { add(std::int64_t{value}); }
    void add(double value) {
        char text[40];
        std::snprintf(text, sizeof text, "%a;", value);
        text_ += text;
    }
    void add(float value) { add(double{value}); }
    void add(std::string_view value) { text_ += std::string(value) + ';'; }
    template <typename... Args>
    void add_all(Args... values) {
        (add(values), ...);
    }
    const std::string& text() const { return text_; }

  private:
    std::string text_;
};

std::string describe(const ModelConfig& config) {
    Values out;
    const TextConfig& t = config.text;
    out.add_all(t.hidden_size, t.num_hidden_layers, t.num_attention_heads, t.num_key_value_heads,
                t.head_dim, t.rotary_dim, t.rope_theta, t.intermediate_size, t.num_local_experts,
                t.num_experts_per_tok, t.vocab_size, t.rms_norm_eps,
                t.layernorm_linear_attention_alpha, t.layernorm_linear_attention_beta,
                t.layernorm_full_attention_alpha, t.layernorm_full_attention_beta,
                t.layernorm_mlp_alpha, t.layernorm_mlp_beta);
    for (const AttentionKind kind : t.attn_type_list) out.add(static_cast<int>(kind));
    const vision::VisionConfig& v = config.vision;
    out.add_all(v.hidden_size, v.intermediate_size, v.num_hidden_layers, v.num_attention_heads,
                v.num_channels, v.image_size, v.patch_size, v.layer_norm_eps, v.text_hidden_size);
    const vision::PreprocessConfig& p = config.preprocess;
    out.add_all(p.tile_size, p.patch_size);
    for (const float value : p.mean) out.add(value);
    for (const float value : p.std) out.add(value);
    for (const vision::Size& grid : p.grids) out.add_all(grid.width, grid.height);
    out.add(config.image_token_index);
    return out.text();
}

}  // namespace

struct Fingerprint::State {
    XXH3_state_t* hash = XXH3_createState();
    std::size_t step = 1;
    std::size_t added = 0;

    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() { XXH3_freeState(hash); }
    void update(const void* data, std::size_t size) { XXH3_128bits_update(hash, data, size); }
};

Fingerprint::Fingerprint(const ModelConfig& config, std::size_t tensor_count)
    : state_(std::make_unique<State>()) {
    if (state_->hash == nullptr) throw Error(Category::kMemory, "out of memory for a hash");
    XXH3_128bits_reset(state_->hash);
    state_->step = std::max<std::size_t>(1, (tensor_count + kSampledTensors - 1) / kSampledTensors);
    const std::string values = describe(config);
    state_->update(values.data(), values.size());
}

Fingerprint::~Fingerprint() = default;

void Fingerprint::add(std::string_view name, const HostTensor& tensor) {
    Values header;
    header.add(name);
    header.add(std::string_view(dtype_name(tensor.dtype)));
    for (int i = 0; i < tensor.rank; ++i) header.add(tensor.shape[static_cast<std::size_t>(i)]);
    state_->update(header.text().data(), header.text().size());
    if (state_->added++ % state_->step != 0) return;
    const std::size_t bytes = tensor.size_bytes();
    const std::size_t sample = std::min(bytes, kSampleBytes);
    state_->update(static_cast<const std::byte*>(tensor.data) + (bytes - sample) / 2, sample);
}

std::string Fingerprint::hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_->hash);
    char text[33];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                  static_cast<unsigned long long>(hash.low64));
    return text;
}

}  // namespace longview::llm

#include "llm/checkpoint/config.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/json_fields.h"
#include "llm/checkpoint/mapped_file.h"
#include "llm/checkpoint/strict_json.h"

namespace longview::llm {
namespace {

using nlohmann::json;

// Upper limits: far beyond any model of this family, and low enough that no count of rows
// overflows an int and no count of bytes a 64-bit integer.
constexpr int kMaxWidth = 1 << 16;
constexpr int kMaxIntermediate = 1 << 20;
constexpr int kMaxVocab = 1 << 24;
constexpr int kMaxLayers = 1024;
constexpr int kMaxHeads = 1024;
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxExperts = 1024;
constexpr int kMaxExpertsInAll = 80'000;  // 80 x 32 in the published model
constexpr int kMaxTileSize = 4096;
constexpr int kMaxPatchesPerSide = 128;
constexpr int kMaxGrids = 1024;
constexpr int kMaxTilesPerSide = 64;
constexpr JsonLimits kConfigLimits{
    .max_bytes = std::size_t{16} << 20, .max_depth = 64, .max_items = 100'000};

void read_text_shape(const Fields& in, TextConfig& out) {
    out.hidden_size = in.integer("hidden_size", 1, kMaxWidth);
    out.num_hidden_layers = in.integer("num_hidden_layers", 1, kMaxLayers);
    out.num_attention_heads = in.integer("num_attention_heads", 1, kMaxHeads);
    out.num_key_value_heads = in.integer("num_key_value_heads", 1, kMaxHeads);
    if (out.num_attention_heads % out.num_key_value_heads != 0) {
        in.refuse("num_key_value_heads", "is " + std::to_string(out.num_key_value_heads) +
                                             ", which does not divide num_attention_heads, " +
                                             std::to_string(out.num_attention_heads));
    }
    out.head_dim = in.integer("head_dim", 1, kMaxHeadDim);
    out.rotary_dim = in.integer("rotary_dim", 2, kMaxHeadDim);
    if (out.rotary_dim > out.head_dim || out.rotary_dim % 2 != 0) {
        in.refuse("rotary_dim", "is " + std::to_string(out.rotary_dim) +
                                    "; an even number up to head_dim, " +
                                    std::to_string(out.head_dim) + ", is expected");
    }
    out.intermediate_size = in.integer("intermediate_size", 1, kMaxIntermediate);
    out.num_local_experts = in.integer("num_local_experts", 1, kMaxExperts);
    out.num_experts_per_tok = in.integer("num_experts_per_tok", 1, out.num_local_experts);
    if (out.num_local_experts * out.num_hidden_layers > kMaxExpertsInAll) {
        in.refuse("num_local_experts",
                  "times num_hidden_layers is " +
                      std::to_string(out.num_local_experts * out.num_hidden_layers) +
                      " experts; at most " + std::to_string(kMaxExpertsInAll) + " are expected");
    }
    out.vocab_size = in.integer("vocab_size", 1, kMaxVocab);
}

void read_attention_kinds(const Fields& in, TextConfig& out) {
    const json& kinds = in.list("attn_type_list");
    if (kinds.size() != static_cast<std::size_t>(out.num_hidden_layers)) {
        in.refuse("attn_type_list", "has " + std::to_string(kinds.size()) +
                                        " entries, but num_hidden_layers is " +
                                        std::to_string(out.num_hidden_layers));
    }
    for (std::size_t layer = 0; layer < kinds.size(); ++layer) {
        const int kind = integer_or_below(kinds[layer], 0, 1);
        if (kind < 0) {
            in.refuse("attn_type_list", "has " + describe_json(kinds[layer]) + " for layer " +
                                            std::to_string(layer) +
                                            "; 0 (lightning) or 1 (softmax) is expected");
        }
        out.attn_type_list.push_back(static_cast<AttentionKind>(kind));
    }
    if (out.count(AttentionKind::kLightning) == 0) return;
    // The decay of a head is 2^(-8 (h+1) / heads) * (1 - layer / (layers - 1) + 1e-5).
    if (!std::has_single_bit(static_cast<unsigned>(out.num_attention_heads))) {
        in.unsupported("num_attention_heads",
                       "is " + std::to_string(out.num_attention_heads) +
                           "; lightning attention is defined for a power of two of heads only");
    }
    if (out.num_hidden_layers < 2) {
        in.unsupported("num_hidden_layers",
                       "is 1; lightning attention is defined for two layers or more only");
    }
}

void read_text_numbers(const Fields& in, TextConfig& out) {
    constexpr double kMaxScale = 1e4;
    out.rope_theta = in.number("rope_theta", 1.0, 1e15);
    out.rms_norm_eps = in.real("rms_norm_eps", 0.0, 1.0);
    const auto scale = [&](const char* key) { return in.real(key, 0.0, kMaxScale); };
    out.layernorm_linear_attention_alpha = scale("layernorm_linear_attention_alpha");
    out.layernorm_linear_attention_beta = scale("layernorm_linear_attention_beta");
    out.layernorm_full_attention_alpha = scale("layernorm_full_attention_alpha");
    out.layernorm_full_attention_beta = scale("layernorm_full_attention_beta");
    out.layernorm_mlp_alpha = scale("layernorm_mlp_alpha");
    out.layernorm_mlp_beta = scale("layernorm_mlp_beta");
}

TextConfig read_text(const Fields& in) {
    in.only("model_type", "minimax_text_01");
    in.only("hidden_act", "silu");
    in.only("postnorm", true);
    in.only("shared_intermediate_size", json::array({0}));
    in.only_if_present("tie_word_embeddings", false);
    in.only_if_present("sliding_window", nullptr);
    in.only_if_present("rope_scaling", nullptr);
    in.only_if_present("quantization_config", nullptr);
    // Options of sibling models.
    in.only_if_present("scoring_func", "softmax");
    in.only_if_present("use_routing_bias", false);
    in.only_if_present("use_qk_norm", false);
    in.only_if_present("attention_bias", false);
    TextConfig out;
    read_text_shape(in, out);
    read_attention_kinds(in, out);
    read_text_numbers(in, out);
    return out;
}

vision::VisionConfig read_vision(const Fields& in) {
    in.only("model_type", "clip_vision_model");
    in.only("hidden_act", "gelu");
    in.only("num_channels", 3);
    vision::VisionConfig out;
    out.num_channels = 3;
    out.hidden_size = in.integer("hidden_size", 1, kMaxWidth);
    out.intermediate_size = in.integer("intermediate_size", 1, kMaxIntermediate);
    out.num_hidden_layers = in.integer("num_hidden_layers", 1, kMaxLayers);
    out.num_attention_heads = in.integer("num_attention_heads", 1, kMaxHeads);
    if (out.hidden_size % out.num_attention_heads != 0) {
        in.refuse("num_attention_heads", "is " + std::to_string(out.num_attention_heads) +
                                             ", which does not divide hidden_size, " +
                                             std::to_string(out.hidden_size));
    }
    out.image_size = in.integer("image_size", 1, kMaxTileSize);
    out.patch_size = in.integer("patch_size", 1, out.image_size);
    if (out.image_size % out.patch_size != 0 ||
        out.image_size / out.patch_size > kMaxPatchesPerSide) {
        in.refuse("image_size", "is " + std::to_string(out.image_size) +
                                    "; a multiple of patch_size, " +
                                    std::to_string(out.patch_size) + ", and at most " +
                                    std::to_string(kMaxPatchesPerSide) + " of them is expected");
    }
    out.layer_norm_eps = in.real("layer_norm_eps", 0.0, 1.0);
    return out;
}

std::vector<vision::Size> read_grids(const Fields& in, int tile_size) {
    constexpr const char* kKey = "image_grid_pinpoints";
    const json& list = in.list(kKey);
    if (list.empty() || list.size() > kMaxGrids) {
        in.refuse(kKey, "has " + std::to_string(list.size()) + " entries; 1 to " +
                            std::to_string(kMaxGrids) + " are expected");
    }
    const auto side = [&](const json& value) {
        const int pixels = integer_or_below(value, 1, kMaxTilesPerSide * tile_size);
        return pixels % tile_size == 0 ? pixels : 0;
    };
    std::vector<vision::Size> grids;
    for (const json& entry : list) {
        const bool is_pair = entry.is_array() && entry.size() == 2;
        const vision::Size size =
            is_pair ? vision::Size{side(entry[0]), side(entry[1])} : vision::Size{};
        if (size.width <= 0 || size.height <= 0) {
            in.refuse(kKey, "entry " + std::to_string(grids.size()) +
                                " is wrong; two multiples of image_size, " +
                                std::to_string(tile_size) + ", up to " +
                                std::to_string(kMaxTilesPerSide) + " of them are expected");
        }
        grids.push_back(size);
    }
    return grids;
}

std::array<float, 3> read_channels(const Fields& in, const char* key, double low) {
    const json& list = in.list(key);
    std::array<float, 3> out{};
    if (list.size() != out.size()) {
        in.refuse(key, "has " + std::to_string(list.size()) + " values; 3 are expected");
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
        const double value = list[i].is_number() ? list[i].get<double>() : 1e9;
        if (!(value > low && value < 10.0)) {
            in.refuse(key, "holds " + describe_json(list[i]) + "; numbers above " +
                               json(low).dump() + " and below 10 are expected");
        }
        out[i] = static_cast<float>(value);
    }
    return out;
}

/// `size` is [width, height] or {"height", "width"}; the tower takes squares of image_size.
void check_view_size(const Fields& in, int image_size) {
    const json& size = in.require("size");
    bool agrees = false;
    if (size.is_array() && size.size() == 2) {
        agrees = size[0] == image_size && size[1] == image_size;
    } else if (size.is_object()) {
        const Fields sides = in.object("size");
        agrees = sides.require("width") == image_size && sides.require("height") == image_size;
    }
    if (!agrees) {
        in.refuse("size", "is not " + std::to_string(image_size) + " x " +
                              std::to_string(image_size) +
                              ", which vision_config.image_size in config.json says");
    }
}

vision::PreprocessConfig read_preprocess(const Fields& in, const vision::VisionConfig& vision,
                                         const std::vector<vision::Size>& grids) {
    vision::PreprocessConfig out;
    out.tile_size = vision.image_size;
    out.patch_size = vision.patch_size;
    out.grids = grids;
    check_view_size(in, vision.image_size);
    // These repeat config.json, where they are required.
    in.only_if_present("process_image_mode", "anyres");
    if (in.find("patch_size") != nullptr &&
        in.integer("patch_size", 1, kMaxTileSize) != vision.patch_size) {
        in.refuse("patch_size", "is " + describe_json(in.require("patch_size")) +
                                    ", but vision_config.patch_size in config.json is " +
                                    std::to_string(vision.patch_size));
    }
    if (in.find("image_grid_pinpoints") != nullptr && read_grids(in, vision.image_size) != grids) {
        in.refuse("image_grid_pinpoints", "differs from image_grid_pinpoints in config.json");
    }
    in.only_if_present("resample", 3);  // bicubic
    in.only_if_present("do_rescale", true);
    in.only_if_present("do_normalize", true);
    out.mean = read_channels(in, "image_mean", -10.0);
    out.std = read_channels(in, "image_std", 1e-6);
    return out;
}

void check_top_level(const Fields& in) {
    const std::string type = in.text("model_type");
    if (type == "minimax_text_01" || type == "minimax") {
        in.unsupported("model_type", "is \"" + type +
                                         "\", a model without pictures; this program runs "
                                         "MiniMax-VL-01 (\"minimax_vl_01\")");
    }
    in.only("model_type", "minimax_vl_01");
    in.only_if_present("quantization_config", nullptr);
    in.only_if_present("tie_word_embeddings", false);
    in.only_if_present("multimodal_projector_bias", true);
    in.only("projector_hidden_act", "gelu");
    in.only("process_image_mode", "anyres");
    in.only("vision_feature_layer", -1);
    in.only("vision_feature_select_strategy", "default");
}

}  // namespace

int TextConfig::count(AttentionKind kind) const {
    return static_cast<int>(std::count(attn_type_list.begin(), attn_type_list.end(), kind));
}

ModelConfig parse_config(std::string_view config_json, std::string_view preprocessor_json,
                         std::string_view origin) {
    const auto label = [&](const char* name) {
        return (std::filesystem::path(origin) / name).string();
    };
    const std::string config_file = label("config.json");
    const json config = parse_strict_json(config_json, kConfigLimits, config_file);
    const Fields top(config, config_file);
    check_top_level(top);
    ModelConfig out;
    out.text = read_text(top.object("text_config"));
    out.vision = read_vision(top.object("vision_config"));
    out.vision.text_hidden_size = out.text.hidden_size;
    out.image_token_index = top.integer("image_token_index", 0, out.text.vocab_size - 1);
    const std::vector<vision::Size> grids = read_grids(top, out.vision.image_size);

    const std::string preprocessor_file = label("preprocessor_config.json");
    const json preprocessor =
        parse_strict_json(preprocessor_json, kConfigLimits, preprocessor_file);
    out.preprocess = read_preprocess(Fields(preprocessor, preprocessor_file), out.vision, grids);
    return out;
}

ModelConfig load_config(const std::filesystem::path& folder) {
    const std::string config = read_whole_file(folder / "config.json", kConfigLimits.max_bytes);
    const std::string preprocessor =
        read_whole_file(folder / "preprocessor_config.json", kConfigLimits.max_bytes);
    return parse_config(config, preprocessor, folder.string());
}

}  // namespace longview::llm

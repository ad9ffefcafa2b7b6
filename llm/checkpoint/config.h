// config.json and preprocessor_config.json of MiniMax-VL-01, every value read and checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "vision/encoder/vision_config.h"
#include "vision/image/tiling.h"

namespace longview::llm {

enum class AttentionKind { kLightning = 0, kSoftmax = 1 };

/// text_config (model-spec 1.1). Names as published.
struct TextConfig {
    int hidden_size = 0;
    int num_hidden_layers = 0;
    int num_attention_heads = 0;
    int num_key_value_heads = 0;
    int head_dim = 0;
    int rotary_dim = 0;
    double rope_theta = 0.0;
    int intermediate_size = 0;  // of one expert
    int num_local_experts = 0;
    int num_experts_per_tok = 0;
    int vocab_size = 0;
    float rms_norm_eps = 0.0F;
    std::vector<AttentionKind> attn_type_list;  // [num_hidden_layers]
    float layernorm_linear_attention_alpha = 0.0F, layernorm_linear_attention_beta = 0.0F;
    float layernorm_full_attention_alpha = 0.0F, layernorm_full_attention_beta = 0.0F;
    float layernorm_mlp_alpha = 0.0F, layernorm_mlp_beta = 0.0F;

    int count(AttentionKind kind) const;
};

/// Epsilon of the norm inside lightning attention; not in config.json (model-spec 3.6, D3).
inline constexpr float kLightningNormEps = 1e-6F;

struct ModelConfig {
    TextConfig text;
    vision::VisionConfig vision;
    vision::PreprocessConfig preprocess;
    std::int32_t image_token_index = 0;
};

/// Reads both files. `origin` names the folder in errors. Missing keys are refused by name, class
/// defaults are never assumed; values the arithmetic does not cover (hidden_act, postnorm false, a
/// shared expert, quick_gelu, another feature layer ...) are refused as kUnsupported; absurd
/// numbers as kInput.
ModelConfig parse_config(std::string_view config_json, std::string_view preprocessor_json,
                         std::string_view origin);

/// parse_config of the two files in a checkpoint folder.
ModelConfig load_config(const std::filesystem::path& folder);

}  // namespace longview::llm

// A small model of the real architecture with random weights in memory, for property tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/runtime/weight_source.h"
#include "llm/checkpoint/checkpoint.h"

namespace longview::llm::testing {

/// Six layers, softmax in the third and last; 4 heads of 16 over 2 key/value heads; 5 experts.
inline ModelConfig small_config() {
    ModelConfig c;
    TextConfig& t = c.text;
    t.hidden_size = 48;
    t.num_hidden_layers = 6;
    t.num_attention_heads = 4;
    t.num_key_value_heads = 2;
    t.head_dim = 16;
    t.rotary_dim = 8;
    t.rope_theta = 10000000.0;
    t.intermediate_size = 40;
    t.num_local_experts = 5;
    t.num_experts_per_tok = 2;
    t.vocab_size = 97;
    t.rms_norm_eps = 1e-5F;
    for (int l = 0; l < t.num_hidden_layers; ++l)
        t.attn_type_list.push_back(l % 3 == 2 ? AttentionKind::kSoftmax
                                              : AttentionKind::kLightning);
    t.layernorm_linear_attention_alpha = 1.75F;
    t.layernorm_linear_attention_beta = 1.0F;
    t.layernorm_full_attention_alpha = 1.6875F;
    t.layernorm_full_attention_beta = 1.0625F;
    t.layernorm_mlp_alpha = 1.625F;
    t.layernorm_mlp_beta = 0.9375F;
    c.vision = {.hidden_size = 32,
                .intermediate_size = 48,
                .num_hidden_layers = 1,
                .num_attention_heads = 2,
                .num_channels = 3,
                .image_size = 28,
                .patch_size = 14,
                .layer_norm_eps = 1e-5F,
                .text_hidden_size = t.hidden_size};
    c.preprocess.tile_size = 28;
    c.preprocess.patch_size = 14;
    c.preprocess.mean = {0.5F, 0.5F, 0.5F};
    c.preprocess.std = {0.25F, 0.25F, 0.25F};
    c.preprocess.grids = {{28, 28}, {28, 56}, {56, 28}, {56, 56}};
    c.image_token_index = 96;
    return c;
}

inline std::uint16_t to_bf16(float value) {
    std::uint32_t bits = 0;
    static_assert(sizeof(bits) == sizeof(value));
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

class RandomSource final : public WeightSource {
  public:
    explicit RandomSource(const ModelConfig& config, std::uint32_t seed = 1) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (const TensorSpec& spec : expected_tensors(config)) {
            Stored& stored = tensors_[spec.name];
            stored.shape = spec.shape;
            std::int64_t count = 1;
            for (const std::int64_t n : spec.shape) count *= n;
            const bool gain = spec.shape.size() == 1 && !spec.name.ends_with("bias");
            const float scale =
                spec.shape.size() < 2
                    ? 0.1F
                    : 1.0F / std::sqrt(static_cast<float>(count / spec.shape.front()));
            stored.values.reserve(static_cast<std::size_t>(count));
            for (std::int64_t i = 0; i < count; ++i)
                stored.values.push_back(to_bf16((gain ? 1.0F : 0.0F) + scale * normal(random)));
        }
    }

    HostTensor tensor(std::string_view name) const override {
        const auto found = tensors_.find(std::string(name));
        if (found == tensors_.end())
            throw Error(Category::kInput, "no tensor " + std::string(name));
        HostTensor t;
        t.data = found->second.values.data();
        t.dtype = DType::kBF16;
        t.rank = static_cast<int>(found->second.shape.size());
        for (std::size_t i = 0; i < found->second.shape.size(); ++i)
            t.shape[i] = found->second.shape[i];
        return t;
    }

    /// The stored bf16 values, to be changed by a test.
    std::vector<std::uint16_t>& values(const std::string& name) { return tensors_.at(name).values; }

  private:
    struct Stored {
        std::vector<std::int64_t> shape;
        std::vector<std::uint16_t> values;
    };
    std::map<std::string, Stored> tensors_;
};

}  // namespace longview::llm::testing

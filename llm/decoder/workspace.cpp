#include "llm/decoder/workspace.h"

namespace longview::llm {

Workspace::Workspace(kernels::Backend& backend, const TextConfig& config, std::int64_t rows)
    : rows_(rows),
      hidden_(config.hidden_size),
      width_(std::int64_t{config.num_attention_heads} * config.head_dim),
      kv_width_(std::int64_t{config.num_key_value_heads} * config.head_dim),
      activation_(backend.activation_dtype()) {
    const auto activations = [&](std::int64_t cols) {
        return backend.allocate(static_cast<std::size_t>(rows * cols) * size_of(activation_));
    };
    normed_ = activations(hidden_);
    projected_ = activations(3 * width_);
    key_ = activations(kv_width_);
    value_ = activations(kv_width_);
    gate_ = activations(width_);
    attention_ = activations(width_);
    const auto picks = static_cast<std::size_t>(rows * config.num_experts_per_tok);
    expert_ids_ = backend.allocate(picks * sizeof(std::int32_t));
    expert_weights_ = backend.allocate(picks * sizeof(float));
}

std::size_t Workspace::bytes(const TextConfig& config, DType activation, std::int64_t rows) {
    const std::int64_t width = std::int64_t{config.num_attention_heads} * config.head_dim;
    const std::int64_t kv_width = std::int64_t{config.num_key_value_heads} * config.head_dim;
    const std::int64_t cols = config.hidden_size + 5 * width + 2 * kv_width;
    return static_cast<std::size_t>(rows * cols) * size_of(activation) +
           static_cast<std::size_t>(rows * config.num_experts_per_tok) * 8;
}

}  // namespace longview::llm

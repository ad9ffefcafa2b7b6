// Activations of the decoder. Sizes follow from the configuration and the number of rows, so that
// memory is known before it is taken.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "llm/checkpoint/config.h"

namespace longview::llm {

/// Buffers for `rows` tokens inside one layer.
class Workspace {
  public:
    Workspace(kernels::Backend& backend, const TextConfig& config, std::int64_t rows);

    static std::size_t bytes(const TextConfig& config, DType activation, std::int64_t rows);

    std::int64_t rows() const { return rows_; }
    // Each [n, width] for n <= rows().
    Matrix normed(std::int64_t n) const { return view(normed_, n, hidden_); }
    Matrix projected(std::int64_t n) const { return view(projected_, n, 3 * width_); }
    Matrix query(std::int64_t n) const { return view(projected_, n, width_); }
    Matrix key(std::int64_t n) const { return view(key_, n, kv_width_); }
    Matrix value(std::int64_t n) const { return view(value_, n, kv_width_); }
    Matrix gate(std::int64_t n) const { return view(gate_, n, width_); }
    Matrix attention(std::int64_t n) const { return view(attention_, n, width_); }
    std::int32_t* expert_ids() const { return expert_ids_.as<std::int32_t>(); }
    float* expert_weights() const { return expert_weights_.as<float>(); }

  private:
    Matrix view(const Buffer& buffer, std::int64_t n, std::int64_t cols) const {
        return {buffer.data(), activation_, n, cols, cols};
    }

    std::int64_t rows_;
    std::int64_t hidden_;
    std::int64_t width_;
    std::int64_t kv_width_;
    DType activation_;
    Buffer normed_, projected_, key_, value_, gate_, attention_, expert_ids_, expert_weights_;
};

}  // namespace longview::llm

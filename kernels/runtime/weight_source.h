// Where a model takes its tensors from by name. Implemented by llm/checkpoint; used by every
// model definition, so that the vision encoder needs to know nothing of checkpoints.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/runtime/tensor.h"

namespace longview {

/// A tensor in host memory as stored, little-endian, row-major, perhaps unaligned.
struct HostTensor {
    const void* data = nullptr;
    DType dtype = DType::kBF16;
    int rank = 0;                         // 1..4
    std::array<std::int64_t, 4> shape{};  // shape[0..rank)

    std::int64_t count() const {
        std::int64_t n = 1;
        for (int i = 0; i < rank; ++i) n *= shape[static_cast<std::size_t>(i)];
        return n;
    }
    std::size_t size_bytes() const { return static_cast<std::size_t>(count()) * size_of(dtype); }
    /// As a matrix of its first axis by the product of the others; rank 1 is one row.
    WeightView as_weight() const {
        const std::int64_t rows = rank == 1 ? 1 : shape[0];
        return {data, dtype, rows, rows == 0 ? 0 : count() / rows};
    }
};

class WeightSource {
  public:
    virtual ~WeightSource() = default;
    /// The tensor's bytes stay valid as long as the source does.
    /// Errors: Category::kInput naming the tensor when it is missing.
    virtual HostTensor tensor(std::string_view name) const = 0;
};

}  // namespace longview

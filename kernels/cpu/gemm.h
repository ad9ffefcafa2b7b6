// Products of rows with a weight matrix, the core of linear.cpp and experts.cpp; any thread.
//
// Every element is one dot product in one order, whatever the blocking: SIMD lane j adds the terms
// k = j (mod lanes) by fused multiply-add from the lowest k on, then the lanes are added as a
// fixed tree. So results are equal bit for bit for any number of rows, threads and blocks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/tensor.h"

namespace longview::kernels::cpu {

/// How a product of `rows` rows is cut into pieces that one thread computes at a time.
struct Blocking {
    std::int64_t rows = 1;     // rows in a piece
    std::int64_t outputs = 1;  // weight rows in a piece
    std::int64_t row_blocks = 0;

    /// rows 0 gives no blocks.
    static Blocking of(std::int64_t rows, std::int64_t inputs);
    /// Floats that dot_products needs as scratch, and a block of results.
    std::size_t scratch_floats() const;
    std::size_t block_floats() const { return static_cast<std::size_t>(rows * outputs); }
    std::int64_t output_blocks(std::int64_t outputs_in_all) const {
        return (outputs_in_all + outputs - 1) / outputs;
    }
    /// Most rows in a piece, for arrays of row pointers.
    static constexpr std::int64_t kMaxRows = 96;
    /// Most outputs in a piece whose inputs are cut into blocks.
    static constexpr std::int64_t kMaxOutputs = 48;
    bool blocked() const;
};

/// out[r * stride + i] = w[first + i] . x[r] for r in [0, rows), i in [0, count).
/// At most Blocking::rows rows and Blocking::outputs outputs of a Blocking with `inputs` = w.cols;
/// scratch holds its scratch_floats(), 64-byte aligned.
void dot_products(const float* const* x, std::int64_t rows, const WeightView& w, std::int64_t first,
                  std::int64_t count, float* out, std::int64_t stride, float* scratch);

}  // namespace longview::kernels::cpu

// Linear layers with what surrounds them: norm before; bias, activation or residual after.
#include <algorithm>
#include <array>
#include <functional>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace longview::kernels::cpu {
namespace {

// Rows whose normalised form is held in scratch at a time: 24 MiB at width 6144. Enough rows to
// repay reading the weights again for the next pass.
constexpr std::int64_t kRowsPerPass = 960;
// Products smaller than this many multiplications end before a second thread would have begun.
constexpr std::int64_t kAlone = 32768;

void check_product(const ConstMatrix& x, const WeightView& w, const Matrix& out) {
    LONGVIEW_CHECK(out.dtype == DType::kF32, "linear writes floats");
    LONGVIEW_CHECK(w.cols == x.cols, "the weight's columns are the inputs");
    LONGVIEW_CHECK(out.rows == x.rows && out.cols == w.rows, "linear writes [rows, outputs]");
}

/// Computes block `index` of u W^T and hands each row of results to
/// finish(row, first output, outputs, results).
template <class Finish>
void product_block(Context& c, int thread, const ConstMatrix& u, const WeightView& w,
                   const Blocking& b, std::int64_t index, const Finish& finish) {
    // Neighbouring pieces share weights: these are the larger part and may come from a disk.
    const std::int64_t first_row = index % b.row_blocks * b.rows;
    const std::int64_t first = index / b.row_blocks * b.outputs;
    const std::int64_t rows = std::min(b.rows, u.rows - first_row);
    const std::int64_t count = std::min(b.outputs, w.rows - first);
    float* const scratch = c.scratch(thread, b.scratch_floats() + b.block_floats());
    float* const results = scratch + b.scratch_floats();
    std::array<const float*, Blocking::kMaxRows> x;
    for (std::int64_t r = 0; r < rows; ++r) x[static_cast<std::size_t>(r)] = u.f32(first_row + r);
    dot_products(x.data(), rows, w, first, count, results, b.outputs, scratch);
    for (std::int64_t r = 0; r < rows; ++r)
        finish(first_row + r, first, count, results + r * b.outputs);
}

/// Every output of p for the already normalised rows u, p.out rows from first_row on.
void linear_outputs(Context& c, const NormLinearParams& p, const ConstMatrix& u,
                    std::int64_t first_row) {
    const Blocking b = Blocking::of(u.rows, u.cols);
    std::int64_t pieces = 0;
    std::int64_t work = 0;
    for (const LinearOutput& o : p.outputs) {
        pieces += b.output_blocks(o.weight.rows) * b.row_blocks;
        work += o.weight.rows * u.rows * u.cols;
    }
    const auto piece = [&](std::int64_t index, int thread) {
        const LinearOutput* o = p.outputs.data();
        for (std::int64_t blocks = 0;; ++o, index -= blocks) {
            blocks = b.output_blocks(o->weight.rows) * b.row_blocks;
            if (index < blocks) break;
        }
        const auto finish = [&](std::int64_t row, std::int64_t first, std::int64_t count,
                                const float* results) {
            activate_row(results, o->bias == nullptr ? nullptr : o->bias + first, o->activation,
                         count, o->out.f32(first_row + row) + first);
        };
        product_block(c, thread, u, o->weight, b, index, finish);
    };
    const auto body = [&](std::int64_t begin, std::int64_t end, int thread) {
        for (std::int64_t i = begin; i < end; ++i) piece(i, thread);
    };
    c.pool.parallel_for(pieces, work < kAlone ? pieces : 1, std::ref(body));
}

void normalise(Context& c, const NormLinearParams& p, const ConstMatrix& x, const Matrix& u) {
    switch (p.norm) {
        case Norm::kRms:
            return rms_norm(c, x, p.gain, p.eps, u);
        case Norm::kLayer:
            return layer_norm(c, x, p.gain, p.norm_bias, p.eps, u);
        case Norm::kNone:
            for (std::int64_t r = 0; r < x.rows; ++r)
                convert_row(x.f32(r), DType::kF32, x.cols, u.f32(r));
    }
}

/// u = gate * RMSNorm(in), where either may be missing.
void gated_norm(Context& c, const LinearResidualParams& p, std::int64_t first, const Matrix& u) {
    const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
            const float* const in = p.in.f32(first + r);
            const float* const gate = p.gate ? p.gate.f32(first + r) : nullptr;
            if (p.norm_gain != nullptr) {
                rms_norm_row(in, p.norm_gain, gate, p.norm_eps, u.cols, u.f32(r));
            } else {
                multiply_row(in, gate, u.cols, u.f32(r));
            }
        }
    };
    c.pool.parallel_for(u.rows, 1 + kAlone / (u.cols + 1), std::ref(rows));
}

void residual_outputs(Context& c, const LinearResidualParams& p, const ConstMatrix& u,
                      std::int64_t first_row) {
    const Blocking b = Blocking::of(u.rows, u.cols);
    const std::int64_t pieces = b.output_blocks(p.weight.rows) * b.row_blocks;
    const auto finish = [&](std::int64_t row, std::int64_t first, std::int64_t count,
                            const float* results) {
        residual_row(results, p.bias == nullptr ? nullptr : p.bias + first,
                     p.skip.f32(first_row + row) + first, p.alpha, p.beta, count,
                     p.out.f32(first_row + row) + first);
    };
    const auto body = [&](std::int64_t begin, std::int64_t end, int thread) {
        for (std::int64_t i = begin; i < end; ++i)
            product_block(c, thread, u, p.weight, b, i, finish);
    };
    const bool alone = p.weight.rows * u.rows * u.cols < kAlone;
    c.pool.parallel_for(pieces, alone ? pieces : 1, std::ref(body));
}

/// Rows [first, first + count) of scratch for the input of the products.
Matrix scratch_rows(Context& c, std::int64_t rows, std::int64_t cols) {
    return {c.shared_scratch(static_cast<std::size_t>(rows * cols)), DType::kF32, rows, cols, cols};
}

}  // namespace

void norm_linear(Context& c, const NormLinearParams& p) {
    LONGVIEW_CHECK(p.x.dtype == DType::kF32, "linear takes float rows");
    LONGVIEW_CHECK(!p.normed || (p.normed.dtype == DType::kF32 && p.normed.rows == p.x.rows &&
                                 p.normed.cols == p.x.cols),
                   "normed has the shape of x");
    for (const LinearOutput& o : p.outputs) check_product(p.x, o.weight, o.out);
    if (p.norm == Norm::kNone && !p.normed) return linear_outputs(c, p, p.x, 0);
    for (std::int64_t first = 0; first < p.x.rows; first += kRowsPerPass) {
        const std::int64_t rows = std::min(kRowsPerPass, p.x.rows - first);
        const Matrix u = p.normed ? p.normed.slice(first, rows) : scratch_rows(c, rows, p.x.cols);
        normalise(c, p, p.x.slice(first, rows), u);
        linear_outputs(c, p, u, first);
    }
}

void linear_residual(Context& c, const LinearResidualParams& p) {
    LONGVIEW_CHECK(p.in.dtype == DType::kF32 && p.skip.dtype == DType::kF32,
                   "linear takes float rows");
    check_product(p.in, p.weight, p.out);
    LONGVIEW_CHECK(p.skip.rows == p.out.rows && p.skip.cols == p.out.cols,
                   "skip has the shape of out");
    LONGVIEW_CHECK(!p.gate || (p.gate.dtype == DType::kF32 && p.gate.rows == p.in.rows &&
                               p.gate.cols == p.in.cols),
                   "gate has the shape of the input");
    if (p.norm_gain == nullptr && !p.gate) return residual_outputs(c, p, p.in, 0);
    for (std::int64_t first = 0; first < p.in.rows; first += kRowsPerPass) {
        const std::int64_t rows = std::min(kRowsPerPass, p.in.rows - first);
        const Matrix u = scratch_rows(c, rows, p.in.cols);
        gated_norm(c, p, first, u);
        residual_outputs(c, p, u, first);
    }
}

}  // namespace longview::kernels::cpu

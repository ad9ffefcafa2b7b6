// Linear layers: chooses the fused kernels for few rows and cuBLASLt for more.
#include <algorithm>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace longview::kernels::cuda {
namespace {

// Rows whose normalised form lies in scratch at a time: 200 MB at width 6144.
constexpr std::int64_t kRowsPerPass = 16384;

void check_product(const ConstMatrix& x, const GemvOutput& o) {
    LONGVIEW_CHECK(o.weight.dtype == DType::kBF16, "weights of linear layers are bf16");
    LONGVIEW_CHECK(o.out.dtype == DType::kBF16 || o.out.dtype == DType::kF32,
                   "linear writes bf16 or fp32");
    LONGVIEW_CHECK(o.weight.cols == x.cols, "the weight's columns are the inputs");
    LONGVIEW_CHECK(o.out.rows == x.rows && o.out.cols == o.weight.rows,
                   "linear writes [rows, outputs]");
    LONGVIEW_CHECK(!o.skip || (o.skip.dtype == DType::kBF16 && o.skip.rows == o.out.rows &&
                               o.skip.cols == o.out.cols),
                   "skip has the shape of out");
}

void check_input(const NormInput& in, const Matrix& normed) {
    LONGVIEW_CHECK(in.x.dtype == DType::kBF16, "linear takes bf16 rows");
    LONGVIEW_CHECK(in.norm == Norm::kNone || in.gain != nullptr, "norm needs a gain");
    LONGVIEW_CHECK(!in.gate || (in.gate.dtype == DType::kBF16 && in.gate.rows == in.x.rows &&
                                in.gate.cols == in.x.cols),
                   "gate has the shape of the input");
    LONGVIEW_CHECK(!normed || (normed.dtype == DType::kBF16 && normed.rows == in.x.rows &&
                               normed.cols == in.x.cols),
                   "normed has the shape of x");
}

NormInput slice(const NormInput& in, std::int64_t first, std::int64_t rows) {
    NormInput part = in;
    part.x = in.x.slice(first, rows);
    if (in.gate) part.gate = in.gate.slice(first, rows);
    return part;
}

GemvOutput slice(const GemvOutput& o, std::int64_t first, std::int64_t rows) {
    GemvOutput part = o;
    part.out = o.out.slice(first, rows);
    if (o.skip) part.skip = o.skip.slice(first, rows);
    return part;
}

/// Rows of scratch, each 16-byte aligned.
Matrix scratch_rows(const Context& c, DType dtype, std::int64_t rows, std::int64_t cols) {
    const std::int64_t stride = (cols + 7) / 8 * 8;
    void* const data = c.scratch->take(static_cast<std::size_t>(rows * stride) * size_of(dtype));
    return {data, dtype, rows, cols, stride};
}

/// One product of many rows. False where cuBLASLt has no kernel for it.
bool library_product(const Context& c, const ConstMatrix& u, const GemvOutput& o) {
    const bool fused_skip = o.skip && o.activation == Activation::kNone &&
                            o.out.dtype == DType::kBF16 &&
                            (o.skip.data != o.out.data || o.skip.stride == o.out.stride);
    if (o.skip && !fused_skip) return false;
    // Exactly one rounding where nothing follows: the bias goes along. Otherwise it is added with
    // the activation, in fp32.
    const bool fused_bias =
        o.bias != nullptr && o.activation == Activation::kNone && o.out.dtype == DType::kBF16;
    // The library adds the bias unscaled, and nothing after it can be scaled.
    if (!fused_bias && o.bias != nullptr && (o.skip || o.beta != 1.0F)) return false;
    __nv_bfloat16* bias = nullptr;
    if (fused_bias) {
        bias = c.scratch->take_array<__nv_bfloat16>(o.weight.rows);
        scale_to_bf16(c, o.bias, o.beta, bias, o.weight.rows);
    }
    if (!c.cublas->matmul(c, {.x = u,
                              .weight = o.weight,
                              .alpha = o.beta,
                              .beta = o.skip ? o.alpha : 0.0F,
                              .c = o.skip,
                              .bias = bias,
                              .y = o.out}))
        return false;
    activate_rows(c, o.out, fused_bias ? nullptr : o.bias, o.activation);
    return true;
}

/// Many rows: the norm into `normed` or scratch, then a product for each output.
void linear_rows(const Context& c, const NormInput& in, const Matrix& normed,
                 std::span<const GemvOutput> outputs) {
    ConstMatrix u = in.x;
    if (normed) {
        norm_rows(c, in, normed);
        u = normed;
    } else if (in.norm != Norm::kNone || in.gate) {
        const Matrix scratch = scratch_rows(c, DType::kBF16, in.x.rows, in.x.cols);
        norm_rows(c, in, scratch);
        u = scratch;
    }
    for (const GemvOutput& o : outputs)
        if (!library_product(c, u, o)) plain_product(c, u, o);
}

/// Few rows without the alignment that gemv() needs: its precision, not its speed.
void linear_unaligned(const Context& c, const NormInput& in, const Matrix& normed,
                      std::span<const GemvOutput> outputs) {
    const Matrix u = scratch_rows(c, DType::kF32, in.x.rows, in.x.cols);
    norm_rows(c, in, u);
    if (normed) norm_rows(c, in, normed);
    for (const GemvOutput& o : outputs) plain_product(c, u, o);
}

void linear(const Context& c, const NormInput& in, const Matrix& normed,
            std::span<const GemvOutput> outputs) {
    check_input(in, normed);
    for (const GemvOutput& o : outputs) check_product(in.x, o);
    if (in.x.rows == 0) return;
    if (in.x.rows <= kGemvRows || c.step != nullptr) {
        if (gemv_takes(c, in, normed, outputs)) return gemv(c, in, normed, outputs);
        return linear_unaligned(c, in, normed, outputs);
    }
    if (in.x.rows <= kRowsPerPass) return linear_rows(c, in, normed, outputs);
    // Scratch is taken once: a slice after the first finds that of the first free, since the
    // stream orders them, but take() cannot know. So only inputs that need none are sliced here.
    const bool needs_scratch = !normed && (in.norm != Norm::kNone || in.gate);
    if (!needs_scratch) return linear_rows(c, in, normed, outputs);
    const Matrix scratch = scratch_rows(c, DType::kBF16, kRowsPerPass, in.x.cols);
    std::vector<GemvOutput> parts(outputs.size());
    for (std::int64_t first = 0; first < in.x.rows; first += kRowsPerPass) {
        const std::int64_t rows = std::min(kRowsPerPass, in.x.rows - first);
        std::transform(outputs.begin(), outputs.end(), parts.begin(),
                       [&](const GemvOutput& o) { return slice(o, first, rows); });
        linear_rows(c, slice(in, first, rows), scratch.slice(0, rows), parts);
    }
}

}  // namespace

void norm_linear(const Context& c, const NormLinearParams& p) {
    std::vector<GemvOutput> outputs;
    outputs.reserve(p.outputs.size());
    for (const LinearOutput& o : p.outputs) {
        outputs.push_back({.weight = o.weight,
                           .bias = o.bias,
                           .activation = o.activation,
                           .out = o.out,
                           .skip = {}});
    }
    const NormInput in{.x = p.x,
                       .norm = p.norm,
                       .gain = p.gain,
                       .norm_bias = p.norm_bias,
                       .eps = p.eps,
                       .gate = {}};
    linear(c, in, p.normed, outputs);
}

void linear_residual(const Context& c, const LinearResidualParams& p) {
    LONGVIEW_CHECK(p.skip, "the residual needs something to skip to");
    const GemvOutput output{.weight = p.weight,
                            .bias = p.bias,
                            .out = p.out,
                            .skip = p.skip,
                            .alpha = p.alpha,
                            .beta = p.beta};
    const NormInput in{.x = p.in,
                       .norm = p.norm_gain != nullptr ? Norm::kRms : Norm::kNone,
                       .gain = p.norm_gain,
                       .eps = p.norm_eps,
                       .gate = p.gate};
    linear(c, in, {}, {&output, 1});
}

}  // namespace longview::kernels::cuda

// Products of few rows: fused kernels that stream each weight once. Used by linear.cpp.
#pragma once

#include <span>

#include "kernels/cuda/rows.h"

namespace longview::kernels::cuda {

/// One product of the same input: out = alpha * skip + beta * act(W u + bias).
struct GemvOutput {
    WeightView weight;            // [out, in] bf16, or fp32 in plain_product
    const float* bias = nullptr;  // [out] or null
    Activation activation = Activation::kNone;
    Matrix out;        // [n, out] bf16 or fp32
    ConstMatrix skip;  // [n, out] bf16, without data: no such term; may be out itself
    float alpha = 0.0F;
    float beta = 1.0F;
};

constexpr std::int64_t kGemvRows = 4;  // of one launch

/// Whether gemv() can do it: 16-byte alignment, and the input fits into shared memory.
bool gemv_takes(const Context& c, const NormInput& in, const Matrix& normed,
                std::span<const GemvOutput> outputs);

/// u = gate * norm(x), kept in fp32; then all outputs in one launch (for each kGemvRows rows and
/// four outputs). `normed` receives u when it has data. No allocation, no synchronisation.
/// Bound: memory; reads every weight once.
void gemv(const Context& c, const NormInput& in, const Matrix& normed,
          std::span<const GemvOutput> outputs);

/// o for the input u (bf16 or fp32), any alignment and size: slow, one warp a result.
void plain_product(const Context& c, const ConstMatrix& u, const GemvOutput& o);

}  // namespace longview::kernels::cuda

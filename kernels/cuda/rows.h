// Work on rows before and after a product: norms with an optional gate, bias and activation.
// Used by linear.cpp, route.cu and experts.cu; not by CudaBackend.
#pragma once

#include <cuda_bf16.h>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace longview::kernels::cuda {

/// u = gate * norm(x), the input of a product. Without gate data: 1.
struct NormInput {
    ConstMatrix x;  // [n, cols] bf16
    Norm norm = Norm::kNone;
    const float* gain = nullptr;       // [cols]
    const float* norm_bias = nullptr;  // [cols], Norm::kLayer only; may be null
    float eps = 0.0F;
    ConstMatrix gate;  // [n, cols] bf16
};

/// y = gate * norm(x); y bf16 or fp32, and may be x itself where that is bf16.
void norm_rows(const Context& c, const NormInput& in, Matrix y);

/// y = act(y + bias) in place; y bf16 or fp32, bias [cols] or null.
void activate_rows(const Context& c, Matrix y, const float* bias, Activation activation);

/// to[i] = scale * from[i], rounded once.
void scale_to_bf16(const Context& c, const float* from, float scale, __nv_bfloat16* to,
                   std::int64_t count);

inline bool is_aligned(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}
/// Every row begins at a multiple of 16 bytes (a matrix without data counts as such).
inline bool is_aligned(const ConstMatrix& m) {
    return is_aligned(m.data) &&
           (m.rows <= 1 || m.stride * static_cast<std::int64_t>(size_of(m.dtype)) % 16 == 0);
}
inline bool is_aligned(const WeightView& w) {
    return is_aligned(w.data) && w.cols * static_cast<std::int64_t>(size_of(w.dtype)) % 16 == 0;
}

}  // namespace longview::kernels::cuda

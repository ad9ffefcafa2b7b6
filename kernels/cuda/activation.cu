// Bias and activation of rows in place, where the product before could not apply them.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/rows.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kBlock = 256;

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
    T value[kCount];
};

__device__ inline float to_float(float v) {
    return v;
}
__device__ inline float to_float(bf16 v) {
    return __bfloat162float(v);
}
__device__ inline void assign(float& to, float v) {
    to = v;
}
__device__ inline void assign(bf16& to, float v) {
    to = __float2bfloat16_rn(v);
}

/// Thread i of a row takes kCount columns; rows in grid.y, with a stride beyond its limit.
template <class T, int kCount>
__global__ void __launch_bounds__(kBlock)
    activate_kernel(T* y, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                    const float* bias, Activation activation) {
    const std::int64_t col =
        (static_cast<std::int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kCount;
    if (col >= cols) return;
    float b[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) b[i] = bias == nullptr ? 0.0F : bias[col + i];
    for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        auto* const at = reinterpret_cast<Pack<T, kCount>*>(y + row * stride + col);
        Pack<T, kCount> pack = *at;
#pragma unroll
        for (int i = 0; i < kCount; ++i)
            assign(pack.value[i], activate(to_float(pack.value[i]) + b[i], activation));
        *at = pack;
    }
}

template <class T, int kCount>
void launch(const Context& c, Matrix y, const float* bias, Activation activation) {
    constexpr std::int64_t kColumns = kBlock * kCount;
    const dim3 grid(static_cast<unsigned>((y.cols + kColumns - 1) / kColumns),
                    static_cast<unsigned>(std::min<std::int64_t>(y.rows, 65535)));
    activate_kernel<T, kCount><<<grid, kBlock, 0, c.stream>>>(static_cast<T*>(y.data), y.stride,
                                                              y.rows, y.cols, bias, activation);
    check_launch("activate");
}

__global__ void __launch_bounds__(kBlock)
    scale_to_bf16_kernel(const float* from, float scale, bf16* to, std::int64_t count) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kBlock + threadIdx.x;
    if (i < count) to[i] = __float2bfloat16_rn(scale * from[i]);
}

}  // namespace

void activate_rows(const Context& c, Matrix y, const float* bias, Activation activation) {
    if (y.rows == 0 || y.cols == 0) return;
    if (bias == nullptr && activation == Activation::kNone) return;
    const bool vectors = is_aligned(y);
    if (y.dtype == DType::kF32) {
        if (vectors && y.cols % 4 == 0) return launch<float, 4>(c, y, bias, activation);
        return launch<float, 1>(c, y, bias, activation);
    }
    LONGVIEW_CHECK(y.dtype == DType::kBF16, "activations are bf16 or fp32");
    if (vectors && y.cols % 8 == 0) return launch<bf16, 8>(c, y, bias, activation);
    launch<bf16, 1>(c, y, bias, activation);
}

void scale_to_bf16(const Context& c, const float* from, float scale, bf16* to, std::int64_t count) {
    if (count == 0) return;
    const auto blocks = static_cast<unsigned>((count + kBlock - 1) / kBlock);
    scale_to_bf16_kernel<<<blocks, kBlock, 0, c.stream>>>(from, scale, to, count);
    check_launch("scale_to_bf16");
}

}  // namespace longview::kernels::cuda

// Norms of rows, with an optional gate. Memory bound: a row is read once and kept in registers up
// to 16384 columns; beyond that, or without 16-byte alignment, it is read again from cache.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kBlock = 256;

struct NormArgs {
    const bf16* x;
    const bf16* gate;   // or null
    const float* gain;  // null for Norm::kNone
    const float* bias;  // or null
    void* y;
    std::int64_t x_stride, gate_stride, y_stride, rows, cols;
    float eps;
};

__device__ inline void put8(bf16* p, const float (&f)[8]) {
    store8(p, pack8(f));
}
__device__ inline void put8(float* p, const float (&f)[8]) {
    reinterpret_cast<float4*>(p)[0] = {f[0], f[1], f[2], f[3]};
    reinterpret_cast<float4*>(p)[1] = {f[4], f[5], f[6], f[7]};
}
__device__ inline void put(bf16* p, float f) {
    *p = __float2bfloat16_rn(f);
}
__device__ inline void put(float* p, float f) {
    *p = f;
}

__device__ inline void load8_floats(const float* p, float (&f)[8]) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w;
    f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
}

/// Sum over the kThreads threads of a row.
template <int kThreads>
__device__ inline float row_sum(float v, float* shared) {
    if constexpr (kThreads == kWarp) return warp_sum(v);
    return block_sum(v, shared);
}

/// (f - shift) * scale * gain + bias, times the gate, for eight columns.
template <Norm kNorm>
__device__ inline void finish8(const NormArgs& p, std::int64_t row, std::int64_t col, float shift,
                               float scale, float (&f)[8]) {
    if constexpr (kNorm != Norm::kNone) {
        float g[8];
        load8_floats(p.gain + col, g);
#pragma unroll
        for (int i = 0; i < 8; ++i) f[i] = (f[i] - shift) * scale * g[i];
        if (kNorm == Norm::kLayer && p.bias != nullptr) {
            load8_floats(p.bias + col, g);
#pragma unroll
            for (int i = 0; i < 8; ++i) f[i] += g[i];
        }
    }
    if (p.gate != nullptr) {
        float g[8];
        unpack8(load8(p.gate + row * p.gate_stride + col), g);
#pragma unroll
        for (int i = 0; i < 8; ++i) f[i] *= g[i];
    }
}

/// kThreads threads a row (a warp or the whole block), each with up to kVectors pieces of 8
/// columns. Everything 16-byte aligned, cols a multiple of 8.
template <Norm kNorm, class Out, int kThreads, int kVectors>
__global__ void __launch_bounds__(kBlock) norm_kernel(const __grid_constant__ NormArgs p) {
    __shared__ float shared[kWarp];
    const int t = static_cast<int>(threadIdx.x) % kThreads;
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kBlock / kThreads) +
                             static_cast<int>(threadIdx.x) / kThreads;
    if (row >= p.rows) return;  // only whole warps, and only where a row is a warp's
    const bf16* const x = p.x + row * p.x_stride;
    const auto vectors = static_cast<int>(p.cols / 8);

    Bf16x8 raw[kVectors];
    float sum = 0.0F;
#pragma unroll
    for (int j = 0; j < kVectors; ++j)
        if (t + j * kThreads < vectors) raw[j] = load8(x + (t + j * kThreads) * 8);
    float shift = 0.0F;
    float scale = 1.0F;
    if constexpr (kNorm == Norm::kLayer) {
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
            if (t + j * kThreads >= vectors) break;
            float f[8];
            unpack8(raw[j], f);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += f[i];
        }
        shift = row_sum<kThreads>(sum, shared) / static_cast<float>(p.cols);
        sum = 0.0F;
    }
    if constexpr (kNorm != Norm::kNone) {
#pragma unroll
        for (int j = 0; j < kVectors; ++j) {
            if (t + j * kThreads >= vectors) break;
            float f[8];
            unpack8(raw[j], f);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum = fmaf(f[i] - shift, f[i] - shift, sum);
        }
        sum = row_sum<kThreads>(sum, shared) / static_cast<float>(p.cols);
        scale = 1.0F / sqrtf(sum + p.eps);
    }
    Out* const y = static_cast<Out*>(p.y) + row * p.y_stride;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
        const int col = (t + j * kThreads) * 8;
        if (col >= p.cols) break;
        float f[8];
        unpack8(raw[j], f);
        finish8<kNorm>(p, row, col, shift, scale, f);
        put8(y + col, f);
    }
}

/// Any width and alignment: a block a row, one element at a time.
template <Norm kNorm, class Out>
__global__ void __launch_bounds__(kBlock) norm_scalar_kernel(const __grid_constant__ NormArgs p) {
    __shared__ float shared[kWarp];
    const std::int64_t row = blockIdx.x;
    const bf16* const x = p.x + row * p.x_stride;
    float shift = 0.0F;
    float scale = 1.0F;
    if constexpr (kNorm == Norm::kLayer) {
        float sum = 0.0F;
        for (std::int64_t i = threadIdx.x; i < p.cols; i += kBlock) sum += __bfloat162float(x[i]);
        shift = block_sum(sum, shared) / static_cast<float>(p.cols);
    }
    if constexpr (kNorm != Norm::kNone) {
        float sum = 0.0F;
        for (std::int64_t i = threadIdx.x; i < p.cols; i += kBlock) {
            const float f = __bfloat162float(x[i]) - shift;
            sum = fmaf(f, f, sum);
        }
        sum = block_sum(sum, shared) / static_cast<float>(p.cols);
        scale = 1.0F / sqrtf(sum + p.eps);
    }
    Out* const y = static_cast<Out*>(p.y) + row * p.y_stride;
    for (std::int64_t i = threadIdx.x; i < p.cols; i += kBlock) {
        float f = __bfloat162float(x[i]);
        if constexpr (kNorm != Norm::kNone) {
            f = (f - shift) * scale * p.gain[i];
            if (kNorm == Norm::kLayer && p.bias != nullptr) f += p.bias[i];
        }
        if (p.gate != nullptr) f *= __bfloat162float(p.gate[row * p.gate_stride + i]);
        put(y + i, f);
    }
}

template <Norm kNorm, class Out>
void launch(cudaStream_t stream, const NormArgs& p, bool vectors) {
    const auto blocks = [&](int rows) { return static_cast<unsigned>((p.rows + rows - 1) / rows); };
    if (vectors && p.cols <= 1024) {
        norm_kernel<kNorm, Out, kWarp, 4><<<blocks(kBlock / kWarp), kBlock, 0, stream>>>(p);
    } else if (vectors && p.cols <= 8192) {
        norm_kernel<kNorm, Out, kBlock, 4><<<blocks(1), kBlock, 0, stream>>>(p);
    } else if (vectors && p.cols <= 16384) {
        norm_kernel<kNorm, Out, kBlock, 8><<<blocks(1), kBlock, 0, stream>>>(p);
    } else {
        norm_scalar_kernel<kNorm, Out><<<blocks(1), kBlock, 0, stream>>>(p);
    }
    check_launch("norm");
}

template <class Out>
void launch(cudaStream_t stream, Norm norm, const NormArgs& p, bool vectors) {
    switch (norm) {
        case Norm::kNone:
            return launch<Norm::kNone, Out>(stream, p, vectors);
        case Norm::kRms:
            return launch<Norm::kRms, Out>(stream, p, vectors);
        case Norm::kLayer:
            return launch<Norm::kLayer, Out>(stream, p, vectors);
    }
}

}  // namespace

void norm_rows(const Context& c, const NormInput& in, Matrix y) {
    const ConstMatrix& x = in.x;
    LONGVIEW_CHECK(x.dtype == DType::kBF16, "norm takes bf16 rows");
    LONGVIEW_CHECK(y.dtype == DType::kBF16 || y.dtype == DType::kF32, "norm writes bf16 or fp32");
    LONGVIEW_CHECK(x.rows == y.rows && x.cols == y.cols, "norm keeps the shape");
    LONGVIEW_CHECK(in.norm == Norm::kNone || in.gain != nullptr || x.cols == 0,
                   "norm needs a gain");
    LONGVIEW_CHECK(!in.gate || (in.gate.dtype == DType::kBF16 && in.gate.rows == x.rows &&
                                in.gate.cols == x.cols),
                   "gate has the shape of the input");
    if (x.rows == 0 || x.cols == 0) return;
    const NormArgs p{.x = static_cast<const bf16*>(x.data),
                     .gate = static_cast<const bf16*>(in.gate.data),
                     .gain = in.gain,
                     .bias = in.norm_bias,
                     .y = y.data,
                     .x_stride = x.stride,
                     .gate_stride = in.gate.stride,
                     .y_stride = y.stride,
                     .rows = x.rows,
                     .cols = x.cols,
                     .eps = in.eps};
    const bool vectors = x.cols % 8 == 0 && is_aligned(x) && is_aligned(in.gate) && is_aligned(y) &&
                         is_aligned(in.gain) && is_aligned(in.norm_bias);
    if (y.dtype == DType::kBF16) {
        launch<bf16>(c.stream, in.norm, p, vectors);
    } else {
        launch<float>(c.stream, in.norm, p, vectors);
    }
}

void rms_norm(const Context& c, ConstMatrix x, const float* gain, float eps, Matrix y) {
    norm_rows(c, {.x = x, .norm = Norm::kRms, .gain = gain, .eps = eps, .gate = {}}, y);
}

void layer_norm(const Context& c, ConstMatrix x, const float* gain, const float* bias, float eps,
                Matrix y) {
    norm_rows(
        c, {.x = x, .norm = Norm::kLayer, .gain = gain, .norm_bias = bias, .eps = eps, .gate = {}},
        y);
}

}  // namespace longview::kernels::cuda

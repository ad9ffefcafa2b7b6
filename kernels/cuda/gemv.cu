// Products of up to four rows with the norm before and the residual after in one launch.
//
// One persistent block a multiprocessor: the first weights are requested, then the block computes
// the norm of the input for itself (12 KB from L2) and keeps it in shared memory, then its warps
// stream whole rows of weights. Rows are split evenly over the blocks whatever output they are of.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/gemv.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kMaxOutputs = 4;
constexpr std::size_t kSharedReserve = 1024;  // of static shared memory and of the system

struct Product {
    const bf16* weight;
    const float* bias;
    void* out;
    const bf16* skip;
    std::int64_t rows, out_stride, skip_stride;
    float alpha, beta;
    int first_unit;
    Activation activation;
    bool out_f32;
};

struct GemvArgs {
    const bf16* x;
    const bf16* gate;
    const float* gain;
    const float* norm_bias;
    bf16* normed;
    std::int64_t x_stride, gate_stride, normed_stride;
    int cols;
    int units;
    Norm norm;
    float eps;
    Product products[kMaxOutputs];
};

/// Rows of weights that a warp reads side by side: more where several inputs share the reads of
/// shared memory, which would bound the kernel otherwise.
__host__ __device__ constexpr int rows_at_once(int inputs) {
    return inputs == 1 ? 1 : 2;
}

/// u = gate * norm(x) for input n in fp32; all threads of the block, ends with a barrier.
__device__ inline void prepare_input(const GemvArgs& p, int n, float* u, float* shared) {
    const bf16* __restrict__ const x = p.x + n * p.x_stride;
    const bf16* __restrict__ const gate = p.gate == nullptr ? nullptr : p.gate + n * p.gate_stride;
    const int live = p.cols / 8;
    const auto vectors = static_cast<int>(gemv_padded(p.cols) / 8);
    // Factors that do not depend on the statistics are multiplied in at once.
    const bool scaled = p.norm == Norm::kRms;
    float sum = 0.0F;
#pragma unroll 2
    for (int v = static_cast<int>(threadIdx.x); v < vectors; v += kGemvThreads) {
        float f[8] = {};
        if (v < live) {
            unpack8(load8(x + 8 * v), f);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += p.norm == Norm::kLayer ? f[i] : f[i] * f[i];
            float g[8];
            if (scaled) {
                gemv_load8(p.gain + 8 * v, g);
#pragma unroll
                for (int i = 0; i < 8; ++i) f[i] *= g[i];
            }
            if (gate != nullptr && p.norm != Norm::kLayer) {
                unpack8(load8(gate + 8 * v), g);
#pragma unroll
                for (int i = 0; i < 8; ++i) f[i] *= g[i];
            }
        }
        gemv_put8(u, v, f);
    }
    const auto count = static_cast<float>(p.cols);
    if (p.norm == Norm::kRms) {
        const float scale = 1.0F / sqrtf(block_sum(sum, shared) / count + p.eps);
        for (int v = static_cast<int>(threadIdx.x); v < live; v += kGemvThreads) {
            float f[8];
            gemv_get8(u, v, f);
#pragma unroll
            for (int i = 0; i < 8; ++i) f[i] *= scale;
            gemv_put8(u, v, f);
        }
    } else if (p.norm == Norm::kLayer) {
        const float mean = block_sum(sum, shared) / count;
        sum = 0.0F;
        for (int v = static_cast<int>(threadIdx.x); v < live; v += kGemvThreads) {
            float f[8];
            gemv_get8(u, v, f);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum = fmaf(f[i] - mean, f[i] - mean, sum);
        }
        const float scale = 1.0F / sqrtf(block_sum(sum, shared) / count + p.eps);
        for (int v = static_cast<int>(threadIdx.x); v < live; v += kGemvThreads) {
            float f[8];
            gemv_get8(u, v, f);
            for (int i = 0; i < 8; ++i) {
                f[i] = (f[i] - mean) * scale * p.gain[8 * v + i];
                if (p.norm_bias != nullptr) f[i] += p.norm_bias[8 * v + i];
                if (gate != nullptr) f[i] *= __bfloat162float(gate[8 * v + i]);
            }
            gemv_put8(u, v, f);
        }
    }
    __syncthreads();
}

/// Each block writes a part of what all of them computed.
__device__ inline void write_normed(const GemvArgs& p, int n, const float* u) {
    bf16* const to = p.normed + n * p.normed_stride;
    const auto step = static_cast<int>(gridDim.x);
    for (int v = static_cast<int>(blockIdx.x) + static_cast<int>(threadIdx.x) * step;
         v < p.cols / 8; v += kGemvThreads * step) {
        float f[8];
        gemv_get8(u, v, f);
        store8(to + 8 * v, pack8(f));
    }
}

/// result of row `row` for input n, with everything that comes after the product.
__device__ inline void write_result(const Product& o, std::int64_t row, int n, float value) {
    if (o.bias != nullptr) value += o.bias[row];
    value = activate(value, o.activation);
    if (o.skip != nullptr)
        value = o.alpha * __bfloat162float(o.skip[n * o.skip_stride + row]) + o.beta * value;
    const std::int64_t at = n * o.out_stride + row;
    if (o.out_f32) {
        static_cast<float*>(o.out)[at] = value;
    } else {
        static_cast<bf16*>(o.out)[at] = __float2bfloat16_rn(value);
    }
}

/// The rows of all products in a line, kRows of one product a unit.
template <int kInputs, int kRows>
struct ProductRows {
    const GemvArgs& p;

    __device__ const Product& product(int unit) const {
        int o = 0;
#pragma unroll
        for (int i = 1; i < kMaxOutputs; ++i)
            if (unit >= p.products[i].first_unit) o = i;
        return p.products[o];
    }
    __device__ int segments() const {
        return 1;
    }
    __device__ int input(int, int) const {
        return 0;
    }
    __device__ void rows(int unit, int, const bf16* (&to)[kRows]) const {
        const Product& o = product(unit);
        const std::int64_t row = static_cast<std::int64_t>(unit - o.first_unit) * kRows;
#pragma unroll
        for (int r = 0; r < kRows; ++r)
            to[r] = o.weight + (row + r < o.rows ? row + r : o.rows - 1) * p.cols;
    }
    __device__ void finish(int unit, const float (&sums)[kRows][kInputs]) const {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        if (lane >= kRows * kInputs) return;
        const Product& o = product(unit);
        const std::int64_t row =
            static_cast<std::int64_t>(unit - o.first_unit) * kRows + lane / kInputs;
        const float value = gemv_pick<kRows * kInputs>(&sums[0][0], lane);
        if (row < o.rows) write_result(o, row, lane % kInputs, value);
    }
};

template <int kInputs>
__global__ void __launch_bounds__(kGemvThreads, 1) gemv_kernel(const __grid_constant__ GemvArgs p) {
    extern __shared__ float4 dynamic_shared[];
    __shared__ float shared[kWarp];
    auto* const u = reinterpret_cast<float*>(dynamic_shared);
    const auto stride = static_cast<int>(gemv_padded(p.cols));
    const auto prepare = [&] {
#pragma unroll 1
        for (int n = 0; n < kInputs; ++n) prepare_input(p, n, u + n * stride, shared);
        if (p.normed == nullptr) return;
        for (int n = 0; n < kInputs; ++n) write_normed(p, n, u + n * stride);
    };
    constexpr int kRows = rows_at_once(kInputs);
    gemv_stream<kInputs, kRows>(ProductRows<kInputs, kRows>{p}, gemv_range(p.units), p.cols, u,
                                stride, prepare);
}

template <int kInputs>
void launch(const Context& c, const GemvArgs& p) {
    const auto bytes = static_cast<std::size_t>(kInputs * gemv_padded(p.cols)) * sizeof(float);
    if (bytes > 47 * 1024) {
        check(
            cudaFuncSetAttribute(gemv_kernel<kInputs>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes)),
            "cudaFuncSetAttribute");
    }
    const int blocks = std::max(1, std::min(c.device.sm_count, p.units));
    gemv_kernel<kInputs><<<static_cast<unsigned>(blocks), kGemvThreads, bytes, c.stream>>>(p);
    check_launch("gemv");
}

void launch(const Context& c, std::int64_t inputs, const GemvArgs& p) {
    switch (inputs) {
        case 1:
            return launch<1>(c, p);
        case 2:
            return launch<2>(c, p);
        case 3:
            return launch<3>(c, p);
        default:
            return launch<4>(c, p);
    }
}

std::int64_t inputs_that_fit(const Context& c, std::int64_t cols) {
    const std::size_t bytes = static_cast<std::size_t>(gemv_padded(cols)) * sizeof(float);
    const std::size_t room = c.device.shared_memory_bytes;
    if (room <= kSharedReserve) return 0;
    return std::min<std::int64_t>(kGemvRows,
                                  static_cast<std::int64_t>((room - kSharedReserve) / bytes));
}

Product make_product(const GemvOutput& o, std::int64_t first_row, std::int64_t rows) {
    const Matrix out = o.out.slice(first_row, rows);
    const ConstMatrix skip = o.skip ? o.skip.slice(first_row, rows) : o.skip;
    return {.weight = static_cast<const bf16*>(o.weight.data),
            .bias = o.bias,
            .out = out.data,
            .skip = static_cast<const bf16*>(skip.data),
            .rows = o.weight.rows,
            .out_stride = o.out.stride,
            .skip_stride = o.skip.stride,
            .alpha = o.alpha,
            .beta = o.beta,
            .first_unit = INT32_MAX,
            .activation = o.activation,
            .out_f32 = o.out.dtype == DType::kF32};
}

// ---- any alignment

template <class T>
__device__ inline float element(const T* p, std::int64_t i) {
    if constexpr (sizeof(T) == 4) return p[i];
    return __bfloat162float(p[i]);
}

constexpr int kPlainWarps = 8;

template <class In, class W>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    plain_product_kernel(const In* u, std::int64_t u_stride, std::int64_t inputs, std::int64_t cols,
                         const W* weight, const __grid_constant__ Product o) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const std::int64_t row =
        static_cast<std::int64_t>(blockIdx.x) * kPlainWarps + static_cast<int>(threadIdx.x) / kWarp;
    if (row >= o.rows) return;
    const W* const w = weight + row * cols;
    for (std::int64_t n = blockIdx.y; n < inputs; n += gridDim.y) {
        const In* const x = u + n * u_stride;
        float sum = 0.0F;
        for (std::int64_t i = lane; i < cols; i += kWarp)
            sum = fmaf(element(w, i), element(x, i), sum);
        sum = warp_sum(sum);
        if (lane == 0) write_result(o, row, static_cast<int>(n), sum);
    }
}

template <class In, class W>
void launch_plain(const Context& c, const ConstMatrix& u, const GemvOutput& o) {
    const dim3 grid(static_cast<unsigned>((o.weight.rows + kPlainWarps - 1) / kPlainWarps),
                    static_cast<unsigned>(std::min<std::int64_t>(u.rows, 65535)));
    plain_product_kernel<In, W><<<grid, kPlainWarps * kWarp, 0, c.stream>>>(
        static_cast<const In*>(u.data), u.stride, u.rows, u.cols,
        static_cast<const W*>(o.weight.data), make_product(o, 0, u.rows));
    check_launch("plain_product");
}

}  // namespace

bool gemv_takes(const Context& c, const NormInput& in, const Matrix& normed,
                std::span<const GemvOutput> outputs) {
    const ConstMatrix& x = in.x;
    std::int64_t rows = 0;
    bool aligned = x.cols > 0 && x.cols % 8 == 0 && is_aligned(x) && is_aligned(in.gate) &&
                   is_aligned(in.gain) && is_aligned(in.norm_bias) && is_aligned(normed);
    for (const GemvOutput& o : outputs) {
        aligned = aligned && is_aligned(o.weight);
        rows += o.weight.rows;
    }
    return aligned && rows < INT32_MAX / 2 && inputs_that_fit(c, x.cols) > 0;
}

void gemv(const Context& c, const NormInput& in, const Matrix& normed,
          std::span<const GemvOutput> outputs) {
    const std::int64_t at_once = inputs_that_fit(c, in.x.cols);
    for (std::int64_t first = 0; first < in.x.rows; first += at_once) {
        const std::int64_t rows = std::min(at_once, in.x.rows - first);
        for (std::size_t o = 0; o == 0 || o < outputs.size(); o += kMaxOutputs) {
            GemvArgs p{
                .x = reinterpret_cast<const bf16*>(in.x.row(first)),
                .gate = in.gate ? reinterpret_cast<const bf16*>(in.gate.row(first)) : nullptr,
                .gain = in.gain,
                .norm_bias = in.norm_bias,
                .normed = normed && o == 0 ? reinterpret_cast<bf16*>(normed.row(first)) : nullptr,
                .x_stride = in.x.stride,
                .gate_stride = in.gate.stride,
                .normed_stride = normed.stride,
                .cols = static_cast<int>(in.x.cols),
                .units = 0,
                .norm = in.norm,
                .eps = in.eps,
                .products = {}};
            const int together = rows_at_once(static_cast<int>(rows));
            for (std::size_t i = 0; i < kMaxOutputs; ++i) {
                p.products[i].first_unit = INT32_MAX;
                if (o + i >= outputs.size()) continue;
                p.products[i] = make_product(outputs[o + i], first, rows);
                p.products[i].first_unit = p.units;
                p.units += static_cast<int>((outputs[o + i].weight.rows + together - 1) / together);
            }
            launch(c, rows, p);
        }
    }
}

void plain_product(const Context& c, const ConstMatrix& u, const GemvOutput& o) {
    if (u.rows == 0 || o.weight.rows == 0) return;
    const bool float_weight = o.weight.dtype == DType::kF32;
    if (u.dtype == DType::kF32) {
        return float_weight ? launch_plain<float, float>(c, u, o)
                            : launch_plain<float, bf16>(c, u, o);
    }
    return float_weight ? launch_plain<bf16, float>(c, u, o) : launch_plain<bf16, bf16>(c, u, o);
}

}  // namespace longview::kernels::cuda

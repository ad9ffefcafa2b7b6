// The mixture of experts for few rows: the ids stay on the device, every expert's weights are
// streamed once a row. Two launches: w1 and w3 with SwiGLU, then w2 with the weighted sum over the
// experts and the residual. Many rows: experts_sorted.cu.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/gemv.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kMaxTopK = 32;
constexpr std::size_t kSharedReserve = 1024;

/// Pointers to one matrix of each expert, passed by value.
template <int kCapacity>
struct WeightTable {
    const bf16* weight[kCapacity];
};

/// What both launches know; x, ids, weights and out begin at the first row of the launch.
struct ExpertsArgs {
    const bf16* x;
    const std::int32_t* ids;
    const float* weights;
    float* h;  // [rows * top_k, inner] silu(w1 x) * (w3 x)
    bf16* out;
    std::int64_t x_stride, out_stride;
    int rows, top_k, experts, hidden, inner;
    float alpha, beta;

    /// The expert of a pair of row and rank; a broken id must not become a broken pointer.
    __device__ int expert(int pair) const {
        return min(max(static_cast<int>(__ldg(ids + pair)), 0), experts - 1);
    }
};

template <int kCapacity>
struct InnerArgs {
    ExpertsArgs a;
    WeightTable<kCapacity> w1, w3;
};

template <int kCapacity>
struct OuterArgs {
    ExpertsArgs a;
    WeightTable<kCapacity> w2;
};

// ---- gate and up

/// Unit: one inner row of one pair, its rows of w1 and w3 side by side.
template <int kCapacity>
struct InnerRows {
    const InnerArgs<kCapacity>& p;
    int padded;

    __device__ int segments() const { return 1; }
    __device__ int input(int unit, int) const { return unit / p.a.inner / p.a.top_k * padded; }
    __device__ void rows(int unit, int, const bf16* (&to)[2]) const {
        const int pair = unit / p.a.inner;
        const int expert = p.a.expert(pair);
        const std::int64_t at = static_cast<std::int64_t>(unit - pair * p.a.inner) * p.a.hidden;
        to[0] = p.w1.weight[expert] + at;
        to[1] = p.w3.weight[expert] + at;
    }
    __device__ void finish(int unit, const float (&sums)[2][1]) const {
        if (threadIdx.x % kWarp == 0) p.a.h[unit] = silu(sums[0][0]) * sums[1][0];
    }
};

template <int kCapacity>
__global__ void __launch_bounds__(kGemvThreads, 1)
    experts_inner_kernel(const __grid_constant__ InnerArgs<kCapacity> p) {
    extern __shared__ float4 dynamic_shared[];
    auto* const u = reinterpret_cast<float*>(dynamic_shared);
    const auto padded = static_cast<int>(gemv_padded(p.a.hidden));
    const auto prepare = [&] {
        for (int n = 0; n < p.a.rows; ++n) {
            const bf16* __restrict__ const x = p.a.x + n * p.a.x_stride;
            for (int v = static_cast<int>(threadIdx.x); v < padded / 8; v += kGemvThreads) {
                float f[8] = {};
                if (8 * v < p.a.hidden) unpack8(load8(x + 8 * v), f);
                gemv_put8(u + n * padded, v, f);
            }
        }
        __syncthreads();
    };
    gemv_stream<1, 2>(InnerRows<kCapacity>{p, padded}, gemv_range(p.a.rows * p.a.top_k * p.a.inner),
                      p.a.hidden, u, 0, prepare);
}

// ---- down

/// Unit: one output; its segments are the rows of w2 of the chosen experts, in order of rank. The
/// input has the experts' weights multiplied in, so that one sum runs over all of them.
template <int kCapacity>
struct OuterRows {
    const OuterArgs<kCapacity>& p;
    int padded;
    int row;

    __device__ int segments() const { return p.a.top_k; }
    __device__ int input(int, int segment) const { return segment * padded; }
    __device__ void rows(int unit, int segment, const bf16* (&to)[1]) const {
        to[0] = p.w2.weight[p.a.expert(row * p.a.top_k + segment)] +
                static_cast<std::int64_t>(unit) * p.a.inner;
    }
    __device__ void finish(int unit, const float (&sums)[1][1]) const {
        if (threadIdx.x % kWarp != 0) return;
        const float x = __bfloat162float(p.a.x[row * p.a.x_stride + unit]);
        p.a.out[row * p.a.out_stride + unit] =
            __float2bfloat16_rn(p.a.alpha * x + p.a.beta * sums[0][0]);
    }
};

template <int kCapacity>
__global__ void __launch_bounds__(kGemvThreads, 1)
    experts_outer_kernel(const __grid_constant__ OuterArgs<kCapacity> p) {
    extern __shared__ float4 dynamic_shared[];
    auto* const u = reinterpret_cast<float*>(dynamic_shared);
    const auto row = static_cast<int>(blockIdx.y);
    const auto padded = static_cast<int>(gemv_padded(p.a.inner));
    const auto prepare = [&] {
        for (int i = 0; i < p.a.top_k; ++i) {
            const std::int64_t pair = static_cast<std::int64_t>(row) * p.a.top_k + i;
            const float weight = p.a.weights[pair];
            const float* __restrict__ const h = p.a.h + pair * p.a.inner;
#pragma unroll 3
            for (int v = static_cast<int>(threadIdx.x); v < padded / 8; v += kGemvThreads) {
                float f[8] = {};
                if (8 * v < p.a.inner) gemv_load8(h + 8 * v, f);
#pragma unroll
                for (int j = 0; j < 8; ++j) f[j] *= weight;
                gemv_put8(u + i * padded, v, f);
            }
        }
        __syncthreads();
    };
    gemv_stream<1, 1>(OuterRows<kCapacity>{p, padded, row}, gemv_range(p.a.hidden), p.a.inner, u, 0,
                      prepare);
}

// ---- any alignment

constexpr int kPlainWarps = 8;

struct PlainArgs {
    ExpertsArgs a;
    WeightTable<kMaxExperts> w1, w3, w2;
};

__device__ inline float plain_dot(const bf16* w, const bf16* x, int count) {
    float sum = 0.0F;
    for (int i = static_cast<int>(threadIdx.x) % kWarp; i < count; i += kWarp)
        sum = fmaf(__bfloat162float(w[i]), __bfloat162float(x[i]), sum);
    return warp_sum(sum);
}

__global__ void __launch_bounds__(kPlainWarps* kWarp)
    plain_inner_kernel(const __grid_constant__ PlainArgs p) {
    const int j =
        static_cast<int>(blockIdx.x) * kPlainWarps + static_cast<int>(threadIdx.x) / kWarp;
    const auto pair = static_cast<int>(blockIdx.y);
    if (j >= p.a.inner) return;
    const int expert = p.a.expert(pair);
    const bf16* const x = p.a.x + pair / p.a.top_k * p.a.x_stride;
    const std::int64_t at = static_cast<std::int64_t>(j) * p.a.hidden;
    const float gate = plain_dot(p.w1.weight[expert] + at, x, p.a.hidden);
    const float up = plain_dot(p.w3.weight[expert] + at, x, p.a.hidden);
    if (threadIdx.x % kWarp == 0)
        p.a.h[static_cast<std::int64_t>(pair) * p.a.inner + j] = silu(gate) * up;
}

__global__ void __launch_bounds__(kPlainWarps* kWarp)
    plain_outer_kernel(const __grid_constant__ PlainArgs p) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int j =
        static_cast<int>(blockIdx.x) * kPlainWarps + static_cast<int>(threadIdx.x) / kWarp;
    const auto row = static_cast<int>(blockIdx.y);
    if (j >= p.a.hidden) return;
    float sum = 0.0F;
    for (int i = 0; i < p.a.top_k; ++i) {
        const int pair = row * p.a.top_k + i;
        const bf16* const w =
            p.w2.weight[p.a.expert(pair)] + static_cast<std::int64_t>(j) * p.a.inner;
        const float* const h = p.a.h + static_cast<std::int64_t>(pair) * p.a.inner;
        float dot = 0.0F;
        for (int k = lane; k < p.a.inner; k += kWarp) dot = fmaf(__bfloat162float(w[k]), h[k], dot);
        sum = fmaf(p.a.weights[pair], dot, sum);
    }
    sum = warp_sum(sum);
    if (lane != 0) return;
    const float x = __bfloat162float(p.a.x[row * p.a.x_stride + j]);
    p.a.out[row * p.a.out_stride + j] = __float2bfloat16_rn(p.a.alpha * x + p.a.beta * sum);
}

// ---- launches

template <class Table>
void fill(Table& table, const ExpertsParams& p, WeightView ExpertWeights::*which) {
    for (std::size_t e = 0; e < p.experts.size(); ++e)
        table.weight[e] = static_cast<const bf16*>((p.experts[e].*which).data);
}

template <class Kernel>
void allow_shared(Kernel kernel, std::size_t bytes) {
    if (bytes <= 47 * 1024) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          "cudaFuncSetAttribute");
}

std::size_t input_bytes(std::int64_t inputs, std::int64_t cols) {
    return static_cast<std::size_t>(inputs * gemv_padded(cols)) * sizeof(float);
}

template <int kCapacity>
void launch_streams(const Context& c, const ExpertsParams& p, const ExpertsArgs& a) {
    InnerArgs<kCapacity> inner{.a = a, .w1 = {}, .w3 = {}};
    fill(inner.w1, p, &ExpertWeights::w1);
    fill(inner.w3, p, &ExpertWeights::w3);
    const std::size_t inner_bytes = input_bytes(a.rows, a.hidden);
    allow_shared(experts_inner_kernel<kCapacity>, inner_bytes);
    const int inner_units = a.rows * a.top_k * a.inner;
    experts_inner_kernel<kCapacity>
        <<<static_cast<unsigned>(std::clamp(c.device.sm_count, 1, inner_units)), kGemvThreads,
           inner_bytes, c.stream>>>(inner);
    check_launch("experts_inner");

    OuterArgs<kCapacity> outer{.a = a, .w2 = {}};
    fill(outer.w2, p, &ExpertWeights::w2);
    const std::size_t outer_bytes = input_bytes(a.top_k, a.inner);
    allow_shared(experts_outer_kernel<kCapacity>, outer_bytes);
    const dim3 grid(static_cast<unsigned>(std::clamp(c.device.sm_count, 1, a.hidden)),
                    static_cast<unsigned>(a.rows));
    experts_outer_kernel<kCapacity><<<grid, kGemvThreads, outer_bytes, c.stream>>>(outer);
    check_launch("experts_outer");
}

void launch_plain(const Context& c, const ExpertsParams& p, const ExpertsArgs& a) {
    PlainArgs args{.a = a, .w1 = {}, .w3 = {}, .w2 = {}};
    fill(args.w1, p, &ExpertWeights::w1);
    fill(args.w3, p, &ExpertWeights::w3);
    fill(args.w2, p, &ExpertWeights::w2);
    const auto grid = [](int results, int rows) {
        return dim3(static_cast<unsigned>((results + kPlainWarps - 1) / kPlainWarps),
                    static_cast<unsigned>(rows));
    };
    plain_inner_kernel<<<grid(a.inner, a.rows * a.top_k), kPlainWarps * kWarp, 0, c.stream>>>(args);
    check_launch("plain_inner");
    plain_outer_kernel<<<grid(a.hidden, a.rows), kPlainWarps * kWarp, 0, c.stream>>>(args);
    check_launch("plain_outer");
}

void check_shapes(const ExpertsParams& p) {
    LONGVIEW_CHECK(p.x.dtype == DType::kBF16 && p.out.dtype == DType::kBF16,
                   "experts takes and writes bf16 rows");
    LONGVIEW_CHECK(p.out.rows == p.x.rows && p.out.cols == p.x.cols, "out has the shape of x");
    LONGVIEW_CHECK(p.top_k > 0 && p.top_k <= kMaxTopK, "top_k lies between 1 and 32");
    LONGVIEW_CHECK(!p.experts.empty() && p.experts.size() <= kMaxExperts,
                   "there are 1 to 256 experts");
    const std::int64_t inner = p.experts[0].w1.rows;
    LONGVIEW_CHECK(
        p.x.cols > 0 && inner > 0 && p.x.cols <= INT32_MAX / 1024 && inner <= INT32_MAX / 1024,
        "the sizes of an expert fit");
    for (const ExpertWeights& w : p.experts) {
        LONGVIEW_CHECK(w.w1.rows == inner && w.w3.rows == inner && w.w2.cols == inner,
                       "experts have one intermediate size");
        LONGVIEW_CHECK(w.w1.cols == p.x.cols && w.w3.cols == p.x.cols && w.w2.rows == p.x.cols,
                       "experts have the hidden size of x");
        LONGVIEW_CHECK(
            w.w1.dtype == DType::kBF16 && w.w3.dtype == DType::kBF16 && w.w2.dtype == DType::kBF16,
            "weights of experts are bf16");
    }
}

bool weights_are_aligned(const ExpertsParams& p) {
    return std::all_of(p.experts.begin(), p.experts.end(), [](const ExpertWeights& w) {
        return is_aligned(w.w1) && is_aligned(w.w3) && is_aligned(w.w2);
    });
}

/// Rows of one pair of launches, 0 where shared memory is too small for these sizes.
std::int64_t rows_that_stream(const Context& c, const ExpertsParams& p) {
    const std::int64_t inner = p.experts[0].w1.rows;
    const std::size_t room = c.device.shared_memory_bytes;
    if (room < kSharedReserve + input_bytes(p.top_k, inner)) return 0;
    const std::size_t rows = (room - kSharedReserve) / input_bytes(1, p.x.cols);
    return std::min<std::int64_t>(kGemvRows, static_cast<std::int64_t>(rows));
}

}  // namespace

void experts(const Context& c, const ExpertsParams& p) {
    check_shapes(p);
    if (p.x.rows == 0) return;
    const bool aligned = weights_are_aligned(p);
    if (aligned && p.x.rows > kGemvRows && c.step == nullptr) return experts_sorted(c, p);

    const bool stream = aligned && is_aligned(p.x) && rows_that_stream(c, p) > 0;
    const std::int64_t inner = p.experts[0].w1.rows;
    // At most 65535 pairs in the grid of the slow form.
    const std::int64_t at_once =
        std::min<std::int64_t>(p.x.rows, stream ? rows_that_stream(c, p) : 1024);
    float* const h = c.scratch->take_array<float>(at_once * p.top_k * inner);
    for (std::int64_t first = 0; first < p.x.rows; first += at_once) {
        const ExpertsArgs a{.x = reinterpret_cast<const bf16*>(p.x.row(first)),
                            .ids = p.ids + first * p.top_k,
                            .weights = p.weights + first * p.top_k,
                            .h = h,
                            .out = reinterpret_cast<bf16*>(p.out.row(first)),
                            .x_stride = p.x.stride,
                            .out_stride = p.out.stride,
                            .rows = static_cast<int>(std::min(at_once, p.x.rows - first)),
                            .top_k = p.top_k,
                            .experts = static_cast<int>(p.experts.size()),
                            .hidden = static_cast<int>(p.x.cols),
                            .inner = static_cast<int>(inner),
                            .alpha = p.alpha,
                            .beta = p.beta};
        if (!stream) {
            launch_plain(c, p, a);
        } else if (p.experts.size() <= 32) {
            launch_streams<32>(c, p, a);
        } else {
            launch_streams<kMaxExperts>(c, p, a);
        }
    }
}

}  // namespace longview::kernels::cuda

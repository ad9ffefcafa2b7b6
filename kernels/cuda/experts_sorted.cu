// The mixture of experts for many rows: pairs of row and rank sorted by expert, one product an
// expert and matrix, and a combination in order of rank.
//
// The sort is stable and counts without atomics, so that rows and sums lie in the same order in
// every run. Only products() knows that experts are multiplied one by one.
#include <algorithm>
#include <span>

#include "kernels/cuda/check.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/gemv.h"

namespace longview::kernels::cuda {
namespace {

// Pairs at a time: at the real sizes 1.6 GB of scratch, and 1024 rows an expert, enough that
// reading the weights is a third of the time of the products.
constexpr std::int64_t kPairsPerPass = 32768;
constexpr int kSortThreads = 1024;
constexpr int kBlock = 256;

/// Inclusive sum over the lanes up to this one.
__device__ inline int warp_scan(int v) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const int below = __shfl_up_sync(0xFFFFFFFFU, v, offset);
        if (lane >= offset) v += below;
    }
    return v;
}

/// Block e finds the places of expert e's pairs: it counts those of lower experts and its own,
/// every thread in a contiguous part of all pairs. Pairs with an id that is no expert's get no
/// place, and the counts do not add up.
__global__ void __launch_bounds__(kSortThreads)
    sort_kernel(const std::int32_t* ids, int pairs, std::int32_t* counts, std::int32_t* sorted,
                std::int32_t* place) {
    __shared__ int warp_equal[kWarp];
    __shared__ int warp_less[kWarp];
    const auto expert = static_cast<unsigned>(blockIdx.x);
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const int warp = thread / kWarp;
    const int part = (pairs + kSortThreads - 1) / kSortThreads;
    const int begin = min(thread * part, pairs);
    const int end = min(begin + part, pairs);
    int equal = 0;
    int less = 0;
    for (int i = begin; i < end; ++i) {
        const auto id = static_cast<unsigned>(ids[i]);
        equal += id == expert ? 1 : 0;
        less += id < expert ? 1 : 0;
    }
    const int up_to = warp_scan(equal);
    less = warp_scan(less);
    if (lane == kWarp - 1) {
        warp_equal[warp] = up_to;
        warp_less[warp] = less;
    }
    __syncthreads();
    int at = up_to - equal;
    int total = 0;
    for (int w = 0; w < kWarp; ++w) {
        at += warp_less[w];
        if (w < warp) at += warp_equal[w];
        total += warp_equal[w];
    }
    if (thread == 0) counts[expert] = total;
    for (int i = begin; i < end; ++i) {
        if (static_cast<unsigned>(ids[i]) != expert) continue;
        sorted[at] = i;
        place[i] = at;
        ++at;
    }
}

/// to[i] = x[sorted[i] / top_k]
template <bool kVectors>
__global__ void __launch_bounds__(kBlock)
    gather_kernel(const bf16* x, std::int64_t stride, const std::int32_t* sorted, int top_k,
                  bf16* to, int hidden) {
    const std::int64_t at = blockIdx.x;
    const bf16* const from = x + sorted[at] / top_k * stride;
    bf16* const out = to + at * hidden;
    if constexpr (kVectors) {
        for (int v = static_cast<int>(threadIdx.x); v < hidden / 8; v += kBlock)
            store8(out + 8 * v, load8(from + 8 * v));
    } else {
        for (int i = static_cast<int>(threadIdx.x); i < hidden; i += kBlock) out[i] = from[i];
    }
}

/// gate = silu(gate) * up, kCount (8 or 1) columns a thread; `stride` from row to row of both.
template <int kCount>
__global__ void __launch_bounds__(kBlock)
    swiglu_kernel(bf16* gate, const bf16* up, std::int64_t rows, std::int64_t cols,
                  std::int64_t stride) {
    const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kCount;
    if (i >= rows * cols) return;
    const std::int64_t at = i / cols * stride + i % cols;
    if constexpr (kCount == 8) {
        float g[8];
        float u[8];
        unpack8(load8(gate + at), g);
        unpack8(load8(up + at), u);
#pragma unroll
        for (int j = 0; j < 8; ++j) g[j] = silu(g[j]) * u[j];
        store8(gate + at, pack8(g));
    } else {
        gate[at] = __float2bfloat16_rn(silu(__bfloat162float(gate[at])) * __bfloat162float(up[at]));
    }
}

struct CombineArgs {
    const bf16* x;
    const bf16* y;  // [pairs, hidden] in sorted order
    const std::int32_t* place;
    const float* weights;
    bf16* out;
    std::int64_t x_stride, out_stride;
    int top_k, hidden;
    float alpha, beta;
};

/// out = alpha x + beta sum_i weight_i y_i, one block a row, kCount columns a thread.
template <int kCount>
__global__ void __launch_bounds__(kBlock) combine_kernel(const __grid_constant__ CombineArgs p) {
    const std::int64_t row = blockIdx.x;
    const bf16* const x = p.x + row * p.x_stride;
    bf16* const out = p.out + row * p.out_stride;
    const std::int32_t* const place = p.place + row * p.top_k;
    const float* const weights = p.weights + row * p.top_k;
    for (int col = static_cast<int>(threadIdx.x) * kCount; col < p.hidden; col += kBlock * kCount) {
        float sum[kCount] = {};
        for (int i = 0; i < p.top_k; ++i) {
            const bf16* const y = p.y + static_cast<std::int64_t>(place[i]) * p.hidden + col;
            if constexpr (kCount == 8) {
                float f[8];
                unpack8(load8(y), f);
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[j] = fmaf(weights[i], f[j], sum[j]);
            } else {
                sum[0] = fmaf(weights[i], __bfloat162float(*y), sum[0]);
            }
        }
        if constexpr (kCount == 8) {
            float f[8];
            unpack8(load8(x + col), f);
#pragma unroll
            for (int j = 0; j < 8; ++j) f[j] = p.alpha * f[j] + p.beta * sum[j];
            store8(out + col, pack8(f));
        } else {
            out[col] = __float2bfloat16_rn(p.alpha * __bfloat162float(x[col]) + p.beta * sum[0]);
        }
    }
}

/// Scratch of one pass; rows of all matrices lie in sorted order.
struct Pass {
    std::int32_t* counts = nullptr;       // [experts]
    std::int32_t* host_counts = nullptr;  // the same, pinned
    std::int32_t* sorted = nullptr;       // [pairs] pair at each place
    std::int32_t* place = nullptr;        // [pairs] place of each pair
    Matrix outer;                         // [pairs, hidden] inputs, then results
    Matrix inner;                         // [pairs, 2 * inner], gate and up side by side
};

Matrix take_rows(const Context& c, std::int64_t rows, std::int64_t cols) {
    return {c.scratch->take_array<bf16>(rows * cols), DType::kBF16, rows, cols, cols};
}

Pass take_pass(const Context& c, const ExpertsParams& p, std::int64_t pairs) {
    const auto experts = static_cast<std::int64_t>(p.experts.size());
    Pass pass;
    pass.counts = c.scratch->take_array<std::int32_t>(experts);
    pass.host_counts =
        static_cast<std::int32_t*>(c.scratch->take_pinned(p.experts.size() * sizeof(std::int32_t)));
    pass.sorted = c.scratch->take_array<std::int32_t>(pairs);
    pass.place = c.scratch->take_array<std::int32_t>(pairs);
    pass.outer = take_rows(c, pairs, p.x.cols);
    pass.inner = take_rows(c, pairs, 2 * p.experts[0].w1.rows);
    return pass;
}

/// Sorts, gathers and tells the host how many rows each expert has.
std::span<const std::int32_t> sort_rows(const Context& c, const ExpertsParams& p, const Pass& pass,
                                        std::int64_t first, std::int64_t rows) {
    const std::int64_t pairs = rows * p.top_k;
    const auto experts = static_cast<unsigned>(p.experts.size());
    sort_kernel<<<experts, kSortThreads, 0, c.stream>>>(
        p.ids + first * p.top_k, static_cast<int>(pairs), pass.counts, pass.sorted, pass.place);
    check_launch("sort");
    const std::size_t bytes = p.experts.size() * sizeof(std::int32_t);
    check(cudaMemcpyAsync(pass.host_counts, pass.counts, bytes, cudaMemcpyDeviceToHost, c.stream),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(c.stream), "cudaStreamSynchronize");
    const std::span counts(pass.host_counts, p.experts.size());
    std::int64_t placed = 0;
    for (const std::int32_t count : counts) placed += count;
    LONGVIEW_CHECK(placed == pairs, "every row is routed to an expert of the layer");

    const ConstMatrix x = p.x.slice(first, rows);
    const auto gather = is_aligned(p.x) ? &gather_kernel<true> : &gather_kernel<false>;
    gather<<<static_cast<unsigned>(pairs), kBlock, 0, c.stream>>>(
        static_cast<const bf16*>(x.data), x.stride, pass.sorted, p.top_k,
        static_cast<bf16*>(pass.outer.data), static_cast<int>(x.cols));
    check_launch("gather");
    return counts;
}

/// Products of one expert's rows: a fused kernel for few of them, else the library.
void expert_products(const Context& c, const ConstMatrix& x, std::span<const GemvOutput> outputs) {
    const NormInput in{.x = x, .gate = {}};
    if (x.rows <= kGemvRows && gemv_takes(c, in, {}, outputs)) return gemv(c, in, {}, outputs);
    for (const GemvOutput& o : outputs) {
        if (!c.cublas->matmul(c, {.x = x, .weight = o.weight, .c = {}, .y = o.out}))
            plain_product(c, x, o);
    }
}

/// gate = silu(gate) * up, side by side in memory.
void swiglu(const Context& c, Matrix gate, Matrix up) {
    const auto low =
        reinterpret_cast<std::uintptr_t>(gate.data) | reinterpret_cast<std::uintptr_t>(up.data) |
        static_cast<std::uintptr_t>(2 * gate.stride) | static_cast<std::uintptr_t>(2 * gate.cols);
    const bool vectors = low % 16 == 0;
    const std::int64_t threads = gate.rows * gate.cols / (vectors ? 8 : 1);
    const auto kernel = vectors ? &swiglu_kernel<8> : &swiglu_kernel<1>;
    kernel<<<static_cast<unsigned>((threads + kBlock - 1) / kBlock), kBlock, 0, c.stream>>>(
        static_cast<bf16*>(gate.data), static_cast<const bf16*>(up.data), gate.rows, gate.cols,
        gate.stride);
    check_launch("swiglu");
}

/// Columns [first, first + count).
Matrix columns(Matrix m, std::int64_t first, std::int64_t count) {
    return {static_cast<bf16*>(m.data) + first, m.dtype, m.rows, count, m.stride};
}

/// inner = [w1 x, w3 x], in one product where the two weights lie one after the other.
void inner_products(const Context& c, const ExpertWeights& e, ConstMatrix x, Matrix inner) {
    const bool joined = e.w1.row(e.w1.rows) == static_cast<const std::byte*>(e.w3.data) &&
                        e.w1.rows == e.w3.rows && x.rows > kGemvRows;
    if (joined) {
        const GemvOutput both{
            .weight = {e.w1.data, e.w1.dtype, 2 * e.w1.rows, e.w1.cols}, .out = inner, .skip = {}};
        return expert_products(c, x, {&both, 1});
    }
    const GemvOutput outputs[] = {
        {.weight = e.w1, .out = columns(inner, 0, e.w1.rows), .skip = {}},
        {.weight = e.w3, .out = columns(inner, e.w1.rows, e.w3.rows), .skip = {}}};
    expert_products(c, x, outputs);
}

/// outer = w2 (silu(w1 outer) * (w3 outer)) for the rows of every expert, several experts at a
/// time.
void products(const Context& c, const ExpertsParams& p, const Pass& pass,
              std::span<const std::int32_t> counts) {
    SideStreams& sides = c.cublas->side_streams();
    sides.fork(c.stream);
    std::int64_t at = 0;
    int turn = 0;
    for (std::size_t e = 0; e < counts.size(); at += counts[e], ++e) {
        if (counts[e] == 0) continue;
        Context side = c;
        side.stream = sides.get(turn++);
        const Matrix outer = pass.outer.slice(at, counts[e]);
        const Matrix inner = pass.inner.slice(at, counts[e]);
        const Matrix gate = columns(inner, 0, inner.cols / 2);
        inner_products(side, p.experts[e], outer, inner);
        swiglu(side, gate, columns(inner, inner.cols / 2, inner.cols / 2));
        const GemvOutput result{.weight = p.experts[e].w2, .out = outer, .skip = {}};
        expert_products(side, gate, {&result, 1});
    }
    sides.join(c.stream);
}

void combine(const Context& c, const ExpertsParams& p, const Pass& pass, std::int64_t first,
             std::int64_t rows) {
    const CombineArgs args{.x = reinterpret_cast<const bf16*>(p.x.row(first)),
                           .y = static_cast<const bf16*>(pass.outer.data),
                           .place = pass.place,
                           .weights = p.weights + first * p.top_k,
                           .out = reinterpret_cast<bf16*>(p.out.row(first)),
                           .x_stride = p.x.stride,
                           .out_stride = p.out.stride,
                           .top_k = p.top_k,
                           .hidden = static_cast<int>(p.x.cols),
                           .alpha = p.alpha,
                           .beta = p.beta};
    const auto kernel =
        is_aligned(p.x) && is_aligned(p.out) ? &combine_kernel<8> : &combine_kernel<1>;
    kernel<<<static_cast<unsigned>(rows), kBlock, 0, c.stream>>>(args);
    check_launch("combine");
}

}  // namespace

void experts_sorted(const Context& c, const ExpertsParams& p) {
    LONGVIEW_CHECK(c.step == nullptr, "a recorded step does not wait for the device");
    const std::int64_t most =
        std::min(p.x.rows, std::max<std::int64_t>(1, kPairsPerPass / p.top_k));
    const Pass pass = take_pass(c, p, most * p.top_k);
    for (std::int64_t first = 0; first < p.x.rows; first += most) {
        const std::int64_t rows = std::min(most, p.x.rows - first);
        const std::span<const std::int32_t> counts = sort_rows(c, p, pass, first, rows);
        products(c, p, pass, counts);
        combine(c, p, pass, first, rows);
    }
}

}  // namespace longview::kernels::cuda

// The router: v = RMSNorm(x), fp32 logits of all experts from the unrounded v, and the best of
// them.
//
// The gain is multiplied in before the product and the statistics after it, so that both sums of a
// row run side by side: logit_e = rstd * sum(gate_e * gain * x).
//
// Few rows: eight blocks a row, on Hopper and later one cluster, whose first block receives the
// logits in shared memory and chooses: one launch. Elsewhere a second launch chooses. Many rows:
// tiles of 32 rows by 32 experts in fp32, then the choice.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/rows.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kMaxExperts = 256;
constexpr int kMaxTopK = 32;
constexpr int kPerLane = kMaxExperts / kWarp;

struct RouteArgs {
    const bf16* x;
    const float* gain;
    const float* gate;  // [experts, hidden]
    bf16* normed;       // few rows only
    float* logits;      // [n, experts]
    std::int32_t* ids;
    float* weights;
    std::int64_t x_stride, normed_stride, n;
    int hidden, experts, top_k;
    float eps;
};

// ---- the choice

/// By one warp: the top_k largest logits, the lower index first among equals, and their softmax. A
/// NaN makes every weight NaN; ids are valid all the same.
__device__ inline void choose(const float* logits, int experts, int top_k, std::int32_t* ids,
                              float* weights) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    float mine[kPerLane];
    bool nan = false;
    unsigned free = 0;  // bit j: expert lane + 32 j is not yet chosen
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
        const int e = lane + j * kWarp;
        mine[j] = -INFINITY;
        if (e >= experts) continue;
        free |= 1U << j;
        mine[j] = logits[e];
        if (isnan(mine[j])) {
            nan = true;
            mine[j] = -INFINITY;
        }
    }
    nan = __any_sync(0xFFFFFFFFU, nan);
    float first = 0.0F;
    float sum = 0.0F;
    float own = 0.0F;  // of the expert of rank `lane`
    for (int rank = 0; rank < top_k; ++rank) {
        float best = -INFINITY;
        int index = INT32_MAX;
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
            if ((free >> j & 1U) != 0 && (index == INT32_MAX || mine[j] > best)) {
                best = mine[j];
                index = lane + j * kWarp;
            }
        }
#pragma unroll
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
            const float other = __shfl_xor_sync(0xFFFFFFFFU, best, offset);
            const int other_index = __shfl_xor_sync(0xFFFFFFFFU, index, offset);
            if (other > best || (other == best && other_index < index)) {
                best = other;
                index = other_index;
            }
        }
        if (index % kWarp == lane) free &= ~(1U << (index / kWarp));
        if (rank == 0) first = best;
        const float weight = rank == 0 ? 1.0F : expf(best - first);
        sum += weight;
        if (lane == rank) {
            own = weight;
            ids[rank] = index;
        }
    }
    if (lane < top_k) weights[lane] = nan ? NAN : own / sum;
}

__global__ void __launch_bounds__(256) choose_kernel(const __grid_constant__ RouteArgs p) {
    const std::int64_t row =
        static_cast<std::int64_t>(blockIdx.x) * 8 + static_cast<int>(threadIdx.x) / kWarp;
    if (row >= p.n) return;
    choose(p.logits + row * p.experts, p.experts, p.top_k, p.ids + row * p.top_k,
           p.weights + row * p.top_k);
}

// ---- few rows

constexpr int kBlocks = 8;  // of a row: the largest cluster that every device has
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kAhead = 6;  // 16-byte loads of a lane before the norm: all at 32 x 6144

__device__ inline float dot4(const float4& a, const float4& b, float sum) {
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
    sum = fmaf(a.z, b.z, sum);
    return fmaf(a.w, b.w, sum);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/// Stores to the same shared variable of block 0 of the cluster.
__device__ inline void store_to_first(float* shared, float v) {
    std::uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(shared_address(shared)));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(v) : "memory");
}
__device__ inline void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#else
__device__ inline void store_to_first(float*, float) {}
__device__ inline void cluster_arrive() {}
__device__ inline void cluster_wait() {}
#endif

/// Block b of a row takes the experts [b * share, (b + 1) * share), several warps an expert. The
/// hidden size is a multiple of 8, everything 16-byte aligned.
template <bool kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    route_row_kernel(const __grid_constant__ RouteArgs p) {
    extern __shared__ float4 scaled_x[];  // gain * x, [hidden / 4]
    __shared__ float all_logits[kMaxExperts];
    __shared__ float part[kWarps];
    __shared__ float reduce[kWarp];
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const int warp = thread / kWarp;
    const auto block = static_cast<int>(blockIdx.x);
    const std::int64_t row = blockIdx.y;
    const int quads = p.hidden / 4;
    if constexpr (kCluster) cluster_arrive();  // this block has begun: its memory may be written

    // Which part of which expert this warp multiplies: warps_each neighbouring warps an expert.
    const int share = (p.experts + kBlocks - 1) / kBlocks;  // at most kWarps
    const int warps_each = kWarps / share;
    const int expert = block * share + warp / warps_each;
    const bool busy = warp / warps_each < share && expert < p.experts;
    const auto* const gate = reinterpret_cast<const float4*>(
        p.gate + static_cast<std::int64_t>(busy ? expert : 0) * p.hidden);
    const int begin = warp % warps_each * kWarp + lane;
    const int step = warps_each * kWarp;
    float4 ahead[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
        const int i = begin + j * step;
        ahead[j] = busy && i < quads ? __ldg(gate + i) : float4{};
    }

    const bf16* const x = p.x + row * p.x_stride;
    float sum = 0.0F;
#pragma unroll 1
    for (int v = thread; v < p.hidden / 8; v += kThreads) {  // once, at the real size
        float f[8];
        unpack8(load8(x + 8 * v), f);
        const float4 a = reinterpret_cast<const float4*>(p.gain)[2 * v];
        const float4 b = reinterpret_cast<const float4*>(p.gain)[2 * v + 1];
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(f[i], f[i], sum);
        scaled_x[2 * v] = {f[0] * a.x, f[1] * a.y, f[2] * a.z, f[3] * a.w};
        scaled_x[2 * v + 1] = {f[4] * b.x, f[5] * b.y, f[6] * b.z, f[7] * b.w};
    }
    sum = block_sum(sum, reduce);  // its barriers also publish scaled_x
    const float scale = 1.0F / sqrtf(sum / static_cast<float>(p.hidden) + p.eps);

    float dot = 0.0F;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
        const int i = begin + j * step;
        if (i < quads) dot = dot4(ahead[j], scaled_x[i], dot);
    }
    if (busy)
        for (int i = begin + kAhead * step; i < quads; i += step)
            dot = dot4(__ldg(gate + i), scaled_x[i], dot);
    dot = warp_sum(dot);
    if (lane == 0) part[warp] = dot;
    __syncthreads();
    if constexpr (kCluster) cluster_wait();  // for all blocks to have begun
    if (thread < share && block * share + thread < p.experts) {
        float logit = 0.0F;
        for (int w = 0; w < warps_each; ++w) logit += part[thread * warps_each + w];
        logit *= scale;
        const int e = block * share + thread;
        if constexpr (kCluster) {
            store_to_first(all_logits + e, logit);
        } else {
            p.logits[row * p.experts + e] = logit;
        }
    }
    // While one warp of the first block chooses, the others write v.
    if constexpr (kCluster) {
        __syncwarp();
        cluster_arrive();
        cluster_wait();
        if (block == 0 && warp == 0)
            choose(all_logits, p.experts, p.top_k, p.ids + row * p.top_k,
                   p.weights + row * p.top_k);
    }
    bf16* const normed = p.normed + row * p.normed_stride;
    for (int v = block + thread * kBlocks; v < p.hidden / 8; v += kThreads * kBlocks) {
        const float4 a = scaled_x[2 * v];
        const float4 b = scaled_x[2 * v + 1];
        const float f[8] = {a.x * scale, a.y * scale, a.z * scale, a.w * scale,
                            b.x * scale, b.y * scale, b.z * scale, b.w * scale};
        store8(normed + 8 * v, pack8(f));
    }
}

void launch_choose(const Context& c, const RouteArgs& p) {
    choose_kernel<<<static_cast<unsigned>((p.n + 7) / 8), 256, 0, c.stream>>>(p);
    check_launch("choose");
}

/// Whether the device has clusters and the code that it runs was compiled for such a device.
bool has_clusters(const Context& c) {
    if (c.device.compute < 90) return false;
    cudaFuncAttributes code{};
    check(cudaFuncGetAttributes(&code, route_row_kernel<true>), "cudaFuncGetAttributes");
    return code.ptxVersion >= 90;
}

void launch_rows(const Context& c, const RouteArgs& p) {
    const auto bytes = static_cast<std::size_t>(p.hidden) * sizeof(float);
    const bool cluster = has_clusters(c);
    const auto kernel = cluster ? &route_row_kernel<true> : &route_row_kernel<false>;
    if (bytes > 40 * 1024) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)),
              "cudaFuncSetAttribute");
    }
    cudaLaunchAttribute shape{};
    shape.id = cudaLaunchAttributeClusterDimension;
    shape.val.clusterDim.x = kBlocks;
    shape.val.clusterDim.y = 1;
    shape.val.clusterDim.z = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kBlocks, static_cast<unsigned>(p.n));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = c.stream;
    config.attrs = &shape;
    config.numAttrs = cluster ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, p), "route_row");
    if (!cluster) launch_choose(c, p);
}

// ---- many rows

constexpr int kTileRows = 32;
constexpr int kTileExperts = 32;
constexpr int kTileDepth = 64;
constexpr int kTilePitch =
    kTileDepth + 4;  // eight rows at a pitch of 68 floats miss each other's banks
constexpr int kTileThreads = 256;

/// Logits of 32 rows and 32 experts. Half the threads take the first half of each 64 columns, half
/// the second; a thread has 2 rows by 4 experts. Everything 16-byte aligned, hidden a multiple
/// of 8.
__global__ void __launch_bounds__(kTileThreads)
    route_tile_kernel(const __grid_constant__ RouteArgs p) {
    __shared__ alignas(16) float xs[kTileRows][kTilePitch];     // gain * x
    __shared__ alignas(16) float gs[kTileExperts][kTilePitch];  // gate
    __shared__ float scales[kTileRows];
    const int thread = static_cast<int>(threadIdx.x);
    const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kTileRows;
    const int first_expert = static_cast<int>(blockIdx.y) * kTileExperts;

    // Loading: 8 columns of one row of x, and 8 of one expert, for each thread.
    const int load_row = thread / 8;
    const int load_col = thread % 8 * 8;
    const std::int64_t row = min(first_row + load_row, p.n - 1);
    const int expert = min(first_expert + load_row, p.experts - 1);
    const bf16* const x = p.x + row * p.x_stride + load_col;
    const float* const g = p.gate + static_cast<std::int64_t>(expert) * p.hidden + load_col;

    // Computing: rows tr, tr + 16 and experts te, te + 8, te + 16, te + 24.
    const int half = thread / 128;
    const int lane = thread % kWarp;
    const int tr = thread % 128 / kWarp * 4 + lane / 8;
    const int te = lane % 8;

    float sums[2][4] = {};
    float squares = 0.0F;
    Bf16x8 next_x{};
    float4 next_g[2];
    float4 next_gain[2];
    const auto fetch = [&](int col) {
        const bool in = col + load_col < p.hidden;
        *reinterpret_cast<uint4*>(&next_x) = {0, 0, 0, 0};
        next_g[0] = next_g[1] = next_gain[0] = next_gain[1] = {};
        if (!in) return;
        next_x = load8(x + col);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            next_g[i] = __ldg(reinterpret_cast<const float4*>(g + col) + i);
            next_gain[i] = __ldg(reinterpret_cast<const float4*>(p.gain + col + load_col) + i);
        }
    };
    fetch(0);
    for (int col = 0; col < p.hidden; col += kTileDepth) {
        float f[8];
        unpack8(next_x, f);
#pragma unroll
        for (int i = 0; i < 8; ++i) squares = fmaf(f[i], f[i], squares);
        __syncthreads();
        auto* const to_x = reinterpret_cast<float4*>(&xs[load_row][load_col]);
        auto* const to_g = reinterpret_cast<float4*>(&gs[load_row][load_col]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            to_x[i] = {f[4 * i] * next_gain[i].x, f[4 * i + 1] * next_gain[i].y,
                       f[4 * i + 2] * next_gain[i].z, f[4 * i + 3] * next_gain[i].w};
            to_g[i] = next_g[i];
        }
        __syncthreads();
        fetch(col + kTileDepth);
#pragma unroll
        for (int k = 0; k < kTileDepth / 2; k += 4) {
            const int at = half * (kTileDepth / 2) + k;
            float4 a[2];
            float4 b[4];
#pragma unroll
            for (int i = 0; i < 2; ++i)
                a[i] = *reinterpret_cast<const float4*>(&xs[tr + 16 * i][at]);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                b[j] = *reinterpret_cast<const float4*>(&gs[te + 8 * j][at]);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] = dot4(a[i], b[j], sums[i][j]);
        }
    }
    // The eight threads that loaded a row have its squares.
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2)
        squares += __shfl_xor_sync(0xFFFFFFFFU, squares, offset);
    if (thread % 8 == 0)
        scales[load_row] = 1.0F / sqrtf(squares / static_cast<float>(p.hidden) + p.eps);
    __syncthreads();
    // The second half hands its sums over through xs.
    if (half == 1) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) xs[tr + 16 * i][te + 8 * j] = sums[i][j];
    }
    __syncthreads();
    if (half == 1) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int r = tr + 16 * i;
        if (first_row + r >= p.n) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int e = te + 8 * j;
            if (first_expert + e < p.experts)
                p.logits[(first_row + r) * p.experts + first_expert + e] =
                    (sums[i][j] + xs[r][e]) * scales[r];
        }
    }
}

/// One warp a logit, any alignment.
__global__ void __launch_bounds__(256) route_scalar_kernel(const __grid_constant__ RouteArgs p) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int expert = static_cast<int>(blockIdx.y) * 8 + static_cast<int>(threadIdx.x) / kWarp;
    if (expert >= p.experts) return;
    const std::int64_t row = blockIdx.x;
    const bf16* const x = p.x + row * p.x_stride;
    const float* const gate = p.gate + static_cast<std::int64_t>(expert) * p.hidden;
    float dot = 0.0F;
    float squares = 0.0F;
    for (int i = lane; i < p.hidden; i += kWarp) {
        const float f = __bfloat162float(x[i]);
        squares = fmaf(f, f, squares);
        dot = fmaf(f * p.gain[i], gate[i], dot);
    }
    dot = warp_sum(dot);
    squares = warp_sum(squares);
    if (lane == 0)
        p.logits[row * p.experts + expert] =
            dot / sqrtf(squares / static_cast<float>(p.hidden) + p.eps);
}

}  // namespace

void route(const Context& c, const RouteParams& p) {
    LONGVIEW_CHECK(p.x.dtype == DType::kBF16 && p.normed.dtype == DType::kBF16,
                   "route takes bf16 rows");
    LONGVIEW_CHECK(p.normed.rows == p.x.rows && p.normed.cols == p.x.cols,
                   "normed has the shape of x");
    LONGVIEW_CHECK(p.gate.dtype == DType::kF32, "the router's gate is fp32");
    LONGVIEW_CHECK(p.gate.cols == p.x.cols, "the gate's columns are the inputs");
    LONGVIEW_CHECK(p.gain != nullptr, "route needs a gain");
    LONGVIEW_CHECK(p.gate.rows > 0 && p.gate.rows <= kMaxExperts, "there are 1 to 256 experts");
    LONGVIEW_CHECK(p.top_k > 0 && p.top_k <= kMaxTopK && p.top_k <= p.gate.rows,
                   "top_k lies between 1 and the number of experts, at most 32");
    LONGVIEW_CHECK(p.x.cols < INT32_MAX / 2, "the hidden size fits into an int");
    if (p.x.rows == 0) return;
    RouteArgs args{.x = static_cast<const bf16*>(p.x.data),
                   .gain = p.gain,
                   .gate = static_cast<const float*>(p.gate.data),
                   .normed = static_cast<bf16*>(p.normed.data),
                   .logits = nullptr,
                   .ids = p.ids,
                   .weights = p.weights,
                   .x_stride = p.x.stride,
                   .normed_stride = p.normed.stride,
                   .n = p.x.rows,
                   .hidden = static_cast<int>(p.x.cols),
                   .experts = static_cast<int>(p.gate.rows),
                   .top_k = p.top_k,
                   .eps = p.eps};
    const bool aligned = p.x.cols % 8 == 0 && is_aligned(p.x) && is_aligned(p.normed) &&
                         is_aligned(p.gain) && is_aligned(p.gate);
    // A row takes a cluster some 4 us and 16 of them run at once; tiles take 80 us at least.
    constexpr std::int64_t kFewRows = 128;
    const bool fits =
        static_cast<std::size_t>(p.x.cols) * sizeof(float) + 4096 <= c.device.shared_memory_bytes;
    const bool few = aligned && fits && p.x.rows <= kFewRows;
    if (!few || !has_clusters(c))
        args.logits = c.scratch->take_array<float>(p.x.rows * p.gate.rows);
    if (few) return launch_rows(c, args);
    rms_norm(c, p.x, p.gain, p.eps, p.normed);
    if (aligned) {
        const dim3 grid(static_cast<unsigned>((args.n + kTileRows - 1) / kTileRows),
                        static_cast<unsigned>((args.experts + kTileExperts - 1) / kTileExperts));
        route_tile_kernel<<<grid, kTileThreads, 0, c.stream>>>(args);
        check_launch("route_tile");
    } else {
        const dim3 grid(static_cast<unsigned>(args.n),
                        static_cast<unsigned>((args.experts + 7) / 8));
        route_scalar_kernel<<<grid, 256, 0, c.stream>>>(args);
        check_launch("route_scalar");
    }
    launch_choose(c, args);
}

}  // namespace longview::kernels::cuda

// Lightning attention (model-spec 3.4, 3.5): cutting a call into pieces, and the recurrence for
// few rows. The blocked form is in lightning_prefill.cu.
//
// As on the CPU, rows are cut at absolute multiples of kLightningTile, and a piece's form follows
// from its number of rows alone, so that calls split at multiples of the tile agree bit for bit
// (with one segment: several round their combined states differently, within the tests' bounds).
#include "kernels/cuda/lightning.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/runtime/error.h"

namespace longview::kernels::cuda {
namespace {

// A block takes 32 columns of v: rows of 128 bytes of the state, 256 blocks at 64 x 128.
constexpr int kStepCols = 32;
constexpr int kStepThreads = 256;
constexpr int kStepGroups = kStepThreads / (kStepCols / 4);  // rows of the state at a time

struct StepArgs {
    const bf16* qkv;
    std::int64_t qkv_stride;
    bf16* out;
    std::int64_t out_stride;
    const float* slopes;
    float* state;
    int rows;
};

/// grid (kDim / kStepCols, heads). A thread keeps kDim / kStepGroups pieces of four columns of the
/// state over all rows: row group + i * kStepGroups, columns 4 * (thread % 8) ... + 3.
template <int kDim>
__global__ __launch_bounds__(kStepThreads) void lightning_step_kernel(const StepArgs a) {
    constexpr int kPieces = kDim / kStepGroups;
    __shared__ float partial[2][kStepThreads / kWarp][kStepCols];  // by parity of the row
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const int warp = thread / kWarp;
    const int head = static_cast<int>(blockIdx.y);
    const int first_col = static_cast<int>(blockIdx.x) * kStepCols;
    const int group = thread / 8;
    const int col = first_col + 4 * (thread % 8);

    float* const state = a.state + std::int64_t{head} * kDim * kDim + group * kDim + col;
    float4 s[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
        s[i] = *reinterpret_cast<const float4*>(state + i * kStepGroups * kDim);
    const float decay = expf(-a.slopes[head]);
    const bf16* q = a.qkv + std::int64_t{head} * 3 * kDim;
    bf16* out = a.out + std::int64_t{head} * kDim + first_col;

    for (int row = 0; row < a.rows; ++row, q += a.qkv_stride, out += a.out_stride) {
        float q_c[kPieces], k_c[kPieces], v[4];
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            q_c[i] = __bfloat162float(q[group + i * kStepGroups]);
            k_c[i] = __bfloat162float(q[kDim + group + i * kStepGroups]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = __bfloat162float(q[2 * kDim + col + i]);
        float sum[4] = {};
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            s[i].x = fmaf(k_c[i], v[0], decay * s[i].x);
            s[i].y = fmaf(k_c[i], v[1], decay * s[i].y);
            s[i].z = fmaf(k_c[i], v[2], decay * s[i].z);
            s[i].w = fmaf(k_c[i], v[3], decay * s[i].w);
            sum[0] = fmaf(q_c[i], s[i].x, sum[0]);
            sum[1] = fmaf(q_c[i], s[i].y, sum[1]);
            sum[2] = fmaf(q_c[i], s[i].z, sum[2]);
            sum[3] = fmaf(q_c[i], s[i].w, sum[3]);
        }
        if (row + 1 == a.rows) {  // before the reduction, which the stores need not wait for
#pragma unroll
            for (int i = 0; i < kPieces; ++i)
                *reinterpret_cast<float4*>(state + i * kStepGroups * kDim) = s[i];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // the four groups of a warp: lanes with equal lane % 8
            sum[i] += __shfl_xor_sync(0xFFFFFFFFU, sum[i], 8);
            sum[i] += __shfl_xor_sync(0xFFFFFFFFU, sum[i], 16);
        }
        float(&part)[kStepThreads / kWarp][kStepCols] = partial[row % 2];
        if (lane < 8)
            *reinterpret_cast<float4*>(&part[warp][4 * lane]) =
                make_float4(sum[0], sum[1], sum[2], sum[3]);
        // One barrier a row is enough: `part` is written again two rows on, after the next one.
        __syncthreads();
        if (thread < kStepCols) {
            float total = 0.0F;
#pragma unroll
            for (int w = 0; w < kStepThreads / kWarp; ++w) total += part[w][thread];
            out[thread] = __float2bfloat16_rn(total);
        }
    }
}

template <int kDim>
void launch_steps(const Context& c, int heads, const StepArgs& args) {
    const dim3 grid(kDim / kStepCols, static_cast<unsigned>(heads));
    lightning_step_kernel<kDim><<<grid, kStepThreads, 0, c.stream>>>(args);
    check_launch("lightning_step");
}

void check_lightning(const LightningParams& p) {
    const std::int64_t width = std::int64_t{p.heads} * p.head_dim;
    LONGVIEW_CHECK(p.heads >= 1 && p.heads <= 65535 && p.head_dim >= 1, "heads without a size");
    LONGVIEW_CHECK(p.qkv.dtype == DType::kBF16 && p.out.dtype == DType::kBF16,
                   "activations on a GPU are bf16");
    LONGVIEW_CHECK(p.qkv.cols == 3 * width && p.out.cols == width && p.out.rows == p.qkv.rows,
                   "q, k, v and the output must fit the heads");
    LONGVIEW_CHECK(p.qkv.rows == 1 || (p.qkv.stride >= p.qkv.cols && p.out.stride >= p.out.cols),
                   "rows must not overlap");
    LONGVIEW_CHECK(p.qkv && p.out && p.slopes != nullptr && p.state != nullptr,
                   "q, k, v, slopes, state and output are needed");
    LONGVIEW_CHECK(p.position >= 0, "positions count from 0");
}

bool aligned16(const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

LightningParams slice(const LightningParams& p, std::int64_t first, std::int64_t count) {
    LightningParams part = p;
    part.qkv = p.qkv.slice(first, count);
    part.out = p.out.slice(first, count);
    part.position = p.position + first;
    return part;
}

/// The blocked form; rows it cannot read in 16-byte pieces are copied first, some thousand at a
/// time and in one segment, so that scratch memory is bounded.
void prefill_any_alignment(const Context& c, const LightningParams& p) {
    constexpr std::int64_t kCopiedRows = 64 * kLightningTile;
    constexpr std::int64_t kMaxStride = std::int64_t{1} << 30;
    if (aligned16(p.qkv.data) && p.qkv.stride % 8 == 0 && p.qkv.stride < kMaxStride)
        return lightning_prefill(
            c, p,
            plan_lightning(p.heads, p.head_dim, lightning_tiles(p.position, p.qkv.rows), c.device));
    const std::int64_t cols = p.qkv.cols;
    auto* const copy = c.scratch->take_array<bf16>(std::min(kCopiedRows, p.qkv.rows) * cols);
    for (std::int64_t first = 0; first < p.qkv.rows;) {
        const std::int64_t in_tile = (p.position + first) % kLightningTile;
        const std::int64_t count = std::min(p.qkv.rows - first, kCopiedRows - in_tile);
        LightningParams part = slice(p, first, count);
        const std::size_t row_bytes = static_cast<std::size_t>(cols) * sizeof(bf16);
        check(
            cudaMemcpy2DAsync(copy, row_bytes, part.qkv.data,
                              static_cast<std::size_t>(p.qkv.stride) * sizeof(bf16), row_bytes,
                              static_cast<std::size_t>(count), cudaMemcpyDeviceToDevice, c.stream),
            "copy of unaligned q, k, v");
        part.qkv = {copy, DType::kBF16, count, cols, cols};
        LightningPlan plan = plan_lightning(p.heads, p.head_dim, 1, c.device);
        plan.segment_tiles = lightning_tiles(part.position, count);
        lightning_prefill(c, part, plan);
        first += count;
    }
}

}  // namespace

void lightning_steps(const Context& c, const LightningParams& p) {
    const StepArgs args{static_cast<const bf16*>(p.qkv.data),
                        p.qkv.stride,
                        static_cast<bf16*>(p.out.data),
                        p.out.stride,
                        p.slopes,
                        p.state,
                        static_cast<int>(p.qkv.rows)};
    switch (p.head_dim) {
        case 32:
            return launch_steps<32>(c, p.heads, args);
        case 64:
            return launch_steps<64>(c, p.heads, args);
        case 128:
            return launch_steps<128>(c, p.heads, args);
        default:
            throw Error(Category::kUnsupported,
                        "Lightning attention on a GPU needs heads of 32, 64 or 128 dimensions.");
    }
}

void lightning_attention(const Context& c, const LightningParams& p) {
    if (p.qkv.rows == 0) return;
    check_lightning(p);
    const std::int64_t rows = p.qkv.rows;
    if (!aligned16(p.state)) return prefill_any_alignment(c, p);
    if (rows <= kLightningStepRows) return lightning_steps(c, p);
    // A short first or last piece goes through the recurrence, as it would in a call of its own.
    const auto is_short = [](std::int64_t n) { return n > 0 && n <= kLightningStepRows; };
    const std::int64_t in_tile = p.position % kLightningTile;
    std::int64_t head = in_tile == 0 ? 0 : std::min(kLightningTile - in_tile, rows);
    if (!is_short(head)) head = 0;
    std::int64_t tail = (p.position + rows) % kLightningTile;
    if (tail > rows - head || !is_short(tail)) tail = 0;
    if (head > 0) lightning_steps(c, slice(p, 0, head));
    if (rows > head + tail) prefill_any_alignment(c, slice(p, head, rows - head - tail));
    if (tail > 0) lightning_steps(c, slice(p, rows - tail, tail));
}

}  // namespace longview::kernels::cuda

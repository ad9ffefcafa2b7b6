// The core of every product with few rows: warps that stream rows of weights past an input in
// shared memory. Two groups of loads are always in flight, also across the ends of rows and during
// the work before the first product, so that a block of 16 warps keeps 64 KiB of reads under way:
// enough for 4.5 TB/s over 132 multiprocessors up to a latency of 1.9 us.
#pragma once

#include "kernels/cuda/device.cuh"

namespace longview::kernels::cuda {

constexpr int kGemvWarps = 16;
constexpr int kGemvThreads = kGemvWarps * kWarp;
constexpr int kGemvLoads = 4;          // 16-byte loads of a lane in a group
constexpr int kGemvChunk = 8 * kWarp;  // columns a warp covers with one load a lane
constexpr int kGemvPadding = kGemvLoads * kGemvChunk;

/// Floats that an input of `cols` columns takes in shared memory.
__host__ __device__ constexpr std::int64_t gemv_padded(std::int64_t cols) {
    return (cols + kGemvPadding - 1) / kGemvPadding * kGemvPadding;
}

/// Where the columns 8 v ... 8 v + 3 lie in shared memory; the next four lie kGemvChunk / 2
/// further. So the lanes of a warp read neighbouring 16-byte words, free of bank conflicts.
__device__ inline int gemv_place(int v) {
    return v / kWarp * kGemvChunk + v % kWarp * 4;
}
__device__ inline void gemv_put8(float* u, int v, const float (&f)[8]) {
    float* const at = u + gemv_place(v);
    *reinterpret_cast<float4*>(at) = {f[0], f[1], f[2], f[3]};
    *reinterpret_cast<float4*>(at + kGemvChunk / 2) = {f[4], f[5], f[6], f[7]};
}
__device__ inline void gemv_get8(const float* u, int v, float (&f)[8]) {
    const float4 a = *reinterpret_cast<const float4*>(u + gemv_place(v));
    const float4 b = *reinterpret_cast<const float4*>(u + gemv_place(v) + kGemvChunk / 2);
    f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w;
    f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
}
__device__ inline void gemv_load8(const float* p, float (&f)[8]) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w;
    f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
}

/// The part of [0, total) that falls to this block: pieces that differ by one at most.
struct GemvRange {
    int first, end;
};
__device__ inline GemvRange gemv_range(int total) {
    const auto at = [&](std::int64_t block) {
        return static_cast<int>(total * block / static_cast<std::int64_t>(gridDim.x));
    };
    return {at(blockIdx.x), at(static_cast<std::int64_t>(blockIdx.x) + 1)};
}

/// Works through this warp's part of `range`: unit i is kRows rows of weights against kInputs
/// inputs, possibly in several segments (rows of several weights, one after another).
///   work.segments()                  of a unit
///   work.rows(i, segment, rows)      sets the kRows pointers to `cols` columns, 16-byte aligned
///   work.input(i, segment)           offset in u of the input, as gemv_put8 laid it
///   work.finish(i, sums)             every lane has the sums [kRows][kInputs]
/// `prepare` fills u while the first loads are under way; it ends with a barrier.
/// u holds kInputs inputs, `u_stride` floats apart, zero from `cols` to gemv_padded(cols).
template <int kInputs, int kRows, class Work, class Prepare>
__device__ __forceinline__ void gemv_stream(const Work& work, GemvRange range, int cols,
                                            const float* u, int u_stride, const Prepare& prepare) {
    static_assert(kGemvLoads % kRows == 0);
    constexpr int kChunks = kGemvLoads / kRows;
    constexpr int kGroup = kChunks * kGemvChunk;  // columns
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int first = range.first + static_cast<int>(threadIdx.x) / kWarp;
    const int groups = (cols + kGroup - 1) / kGroup;
    const int segments = work.segments();

    // What is loaded next.
    int ahead = first;
    int ahead_segment = 0;
    int ahead_col = lane * 8;
    const bf16* rows[kRows];
    if (ahead < range.end) work.rows(ahead, 0, rows);
    const auto fetch = [&](Bf16x8(&group)[kRows][kChunks]) {
        if (ahead >= range.end) return;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            const int col = ahead_col + c * kGemvChunk;
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                group[r][c] = load8_streaming(rows[r] + col, col < cols);
        }
        ahead_col += kGroup;
        if (ahead_col - lane * 8 < cols) return;
        ahead_col = lane * 8;
        if (++ahead_segment == segments) {
            ahead_segment = 0;
            ahead += kGemvWarps;
        }
        if (ahead < range.end) work.rows(ahead, ahead_segment, rows);
    };

    Bf16x8 even[kRows][kChunks];
    Bf16x8 odd[kRows][kChunks];
    fetch(even);
    fetch(odd);
    prepare();

    int unit = first;
    int segment = 0;
    int group = 0;
    const float* input = u + (unit < range.end ? work.input(unit, 0) : 0) + lane * 4;
    float sums[kRows][kInputs][2] = {};
    const auto consume = [&](Bf16x8(&loaded)[kRows][kChunks]) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
            float w[kRows][8];
#pragma unroll
            for (int r = 0; r < kRows; ++r) unpack8(loaded[r][c], w[r]);
#pragma unroll
            for (int n = 0; n < kInputs; ++n) {
                const float* const at = input + n * u_stride + c * kGemvChunk;
                const float4 a = *reinterpret_cast<const float4*>(at);
                const float4 b = *reinterpret_cast<const float4*>(at + kGemvChunk / 2);
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    float& s = sums[r][n][0];
                    float& t = sums[r][n][1];
                    s = fmaf(w[r][0], a.x, s), t = fmaf(w[r][4], b.x, t);
                    s = fmaf(w[r][1], a.y, s), t = fmaf(w[r][5], b.y, t);
                    s = fmaf(w[r][2], a.z, s), t = fmaf(w[r][6], b.z, t);
                    s = fmaf(w[r][3], a.w, s), t = fmaf(w[r][7], b.w, t);
                }
            }
        }
        fetch(loaded);  // before the end of a unit, whose latency it hides
        input += kGroup;
        if (++group < groups) return;
        group = 0;
        if (++segment == segments) {
            segment = 0;
            float results[kRows][kInputs];
#pragma unroll
            for (int r = 0; r < kRows; ++r)
#pragma unroll
                for (int n = 0; n < kInputs; ++n) {
                    results[r][n] = warp_sum(sums[r][n][0] + sums[r][n][1]);
                    sums[r][n][0] = 0.0F;
                    sums[r][n][1] = 0.0F;
                }
            work.finish(unit, results);
            unit += kGemvWarps;
        }
        if (unit < range.end) input = u + work.input(unit, segment) + lane * 4;
    };
    while (unit < range.end) {
        consume(even);
        if (unit < range.end) consume(odd);
    }
}

/// Element `index` of an array in registers.
template <int kCount>
__device__ inline float gemv_pick(const float* values, int index) {
    float v = values[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) v = index == i ? values[i] : v;
    return v;
}

}  // namespace longview::kernels::cuda

// The blocked attention kernel for many queries, from sm_80 on.
//
// A block of four warps takes 128 rows of one query head through its keys, 64 at a time. A warp has
// 32 rows, two fragments, so that what it reads of K and V from shared memory serves two matrix
// instructions: with one, shared memory (128 bytes a clock) would be the bound. Q is read from
// shared memory again for every tile, for its 64 registers are those of the scores. Tiles arrive in
// two buffers, one barrier a tile. Two blocks share a multiprocessor at kDim 128 (96 KB and at most
// 255 registers each), and fill each other's waits.
#pragma once

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/check.h"

namespace longview::kernels::cuda {

constexpr int kFlashThreads = 128;
constexpr int kFlashRows = 128;
constexpr int kFlashKeys = 64;
constexpr int kWarpRows = 32;

struct FlashArgs {
    const bf16* q = nullptr;  // [batches * rows, heads * kDim]
    std::int64_t q_stride = 0;
    bf16* out = nullptr;  // as q
    std::int64_t out_stride = 0;
    int rows = 0;                     // of a batch entry
    int keys = 0;                     // of a batch entry; causal: unused
    std::int64_t position = 0;        // causal: row i sees the keys 0 ... position + i
    const StepInput* step = nullptr;  // holds the position when not null
    float scale_log2 = 0.0F;          // scale * log2(e)
    int group = 1;                    // query heads of a key/value head
    int row_blocks = 0;
};

template <int kDim>
struct FlashShared {
    static constexpr int kQueryBytes = kFlashRows * 2 * kDim;
    static constexpr int kTileBytes = kFlashKeys * 2 * kDim;
    static constexpr int kStageBytes = 2 * kTileBytes;  // K, then V
    static constexpr int kBytes = kQueryBytes + 2 * kStageBytes;
};

/// threadIdx.x and blockIdx.x, read anew: what is derived from them is not kept in registers across
/// the loop over tiles, where all of them are taken.
__device__ __forceinline__ int thread_anew() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}
__device__ __forceinline__ int block_anew() {
    int block;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    return block;
}

/// What a block works on.
struct FlashBlock {
    int batch;
    int kv_head;
    int head;
    int first_row;
    int position;
    int end_key;  // keys that its last row sees

    /// Of q and out.
    template <int kDim>
    __device__ __forceinline__ std::int64_t element(const FlashArgs& args, int warp,
                                                    std::int64_t stride) const {
        const std::int64_t row =
            static_cast<std::int64_t>(batch) * args.rows + first_row + warp * kWarpRows;
        return row * stride + static_cast<std::int64_t>(head) * kDim;
    }
};

/// Blocks of one key/value head follow each other (blockIdx.y is slowest), its query heads side by
/// side, so that they find K and V in L2; late rows, which see most keys, come first, so that the
/// short blocks fill the end.
template <bool kCausal>
__device__ __forceinline__ FlashBlock flash_block(const FlashArgs& args) {
    FlashBlock b;
    const int x = block_anew();
    const int block = x / args.group;
    b.batch = block / args.row_blocks;
    b.kv_head = static_cast<int>(blockIdx.y);
    b.head = b.kv_head * args.group + x % args.group;
    b.first_row = (args.row_blocks - 1 - block % args.row_blocks) * kFlashRows;
    b.position = static_cast<int>(args.step != nullptr ? args.step->position : args.position);
    b.end_key = kCausal ? b.position + min(args.rows, b.first_row + kFlashRows) : args.keys;
    return b;
}

/// s = Q K^T for the warp's 32 rows and the tile's 64 keys. s[m][n] is c of mma: rows 16 m ...,
/// keys 8 n ....
template <int kDim>
__device__ __forceinline__ void score_tile(float (&s)[2][8][4], std::uint32_t q, std::uint32_t k) {
    constexpr int kSixteenRows = 16 * SwizzledRows<kDim>::kRowBytes;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[m][n][i] = 0.0F;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
        std::uint32_t a[2][4];
        ldmatrix4(a[0], q ^ (32 * step));
        ldmatrix4(a[1], (q ^ (32 * step)) + kSixteenRows);
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            std::uint32_t b[4];
            ldmatrix4(b, (k ^ (32 * step)) + pair * kSixteenRows);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma_bf16(s[m][2 * pair], a[m], b[0], b[1]);
                mma_bf16(s[m][2 * pair + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// Minus infinity where a key's number is not below its row's limit. `first_key` is that of this
/// lane's first column; rows further down see `kRowStep` keys more a row.
template <int kRowStep>
__device__ __forceinline__ void mask_tile(float (&s)[2][8][4], int first_key, int limit) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (first_key + 8 * n + i % 2 >= limit + (16 * m + i / 2 * 8) * kRowStep)
                    s[m][n][i] = kMinusInfinity;
}

/// s becomes exp(scale (s - max)) with the running maximum, of which `factor` is what older sums
/// must be multiplied with; `sum` stays a sum over this lane's columns only. Every row has seen a
/// key by the end of its first tile, hence `largest` is finite.
__device__ __forceinline__ void online_softmax(float (&s)[8][4], float (&largest)[2],
                                               float (&sum)[2], float (&factor)[2],
                                               float scale_log2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = fmaxf(s[0][2 * half], s[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        top = fmaxf(largest[half], quad_max(top));
        factor[half] = exp2_approx((largest[half] - top) * scale_log2);
        largest[half] = top;
        const float shift = -top * scale_log2;
        float added = 0.0F;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                s[n][i] = exp2_approx(fmaf(s[n][i], scale_log2, shift));
                added += s[n][i];
            }
        sum[half] = fmaf(sum[half], factor[half], added);
    }
}

/// o += P V. Two neighbouring c fragments of scores, rounded, are the A fragment of 16 keys.
template <int kDim>
__device__ __forceinline__ void accumulate_tile(float (&o)[2][kDim / 8][4],
                                                const float (&p)[2][8][4], std::uint32_t v) {
    constexpr int kSixteenRows = 16 * SwizzledRows<kDim>::kRowBytes;
#pragma unroll
    for (int step = 0; step < kFlashKeys / 16; ++step) {
        std::uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            a[m][0] = pack_bf16(p[m][2 * step][0], p[m][2 * step][1]);
            a[m][1] = pack_bf16(p[m][2 * step][2], p[m][2 * step][3]);
            a[m][2] = pack_bf16(p[m][2 * step + 1][0], p[m][2 * step + 1][1]);
            a[m][3] = pack_bf16(p[m][2 * step + 1][2], p[m][2 * step + 1][3]);
        }
#pragma unroll
        for (int pair = 0; pair < kDim / 16; ++pair) {
            std::uint32_t b[4];
            ldmatrix4_transposed(b, (v ^ (32 * pair)) + step * kSixteenRows);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma_bf16(o[m][2 * pair], a[m], b[0], b[1]);
                mma_bf16(o[m][2 * pair + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// Running results of a warp's rows. Index [m][half] is row 16 m + 8 half + lane / 4.
template <int kDim>
struct FlashState {
    float o[2][kDim / 8][4];
    float largest[2][2];
    float sum[2][2];

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) o[m][n][i] = 0.0F;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                largest[m][half] = kMinusInfinity;
                sum[m][half] = 0.0F;
            }
        }
    }
    /// Takes in the scores of a tile.
    __device__ __forceinline__ void add(float (&s)[2][8][4], std::uint32_t v, float scale_log2) {
        float factor[2][2];
        online_softmax(s[0], largest[0], sum[0], factor[0], scale_log2);
        online_softmax(s[1], largest[1], sum[1], factor[1], scale_log2);
        // Past the first tiles a larger score is rare, and a factor of 1 changes nothing.
        const float least =
            fminf(fminf(factor[0][0], factor[0][1]), fminf(factor[1][0], factor[1][1]));
        if (__any_sync(0xFFFFFFFFU, least != 1.0F)) {
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) o[m][n][i] *= factor[m][i / 2];
        }
        accumulate_tile<kDim>(o, s, v);
    }
    /// Writes the warp's rows of the result, through `shared` (the warp's 32 rows of Q, which it
    /// alone reads), so that stores are whole chunks. Rows from `rows` on are left out.
    __device__ __forceinline__ void finish(std::uint32_t shared, bf16* out, std::int64_t stride,
                                           int rows) {
        using Rows = SwizzledRows<kDim>;
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        __syncwarp();
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float scale = 1.0F / quad_sum(sum[m][half]);
                const int row = 16 * m + 8 * half + lane / 4;
#pragma unroll
                for (int n = 0; n < kDim / 8; ++n)
                    store_shared4(
                        shared + Rows::offset(row, n) + lane % 4 * 4,
                        pack_bf16(o[m][n][2 * half] * scale, o[m][n][2 * half + 1] * scale));
            }
        __syncwarp();
        const int chunk = lane % Rows::kChunks;
#pragma unroll 4
        for (int row = lane / Rows::kChunks; row < kWarpRows; row += kWarp / Rows::kChunks)
            if (row < rows)
                store_chunk(out + row * stride + 8 * chunk,
                            load_shared16(shared + Rows::offset(row, chunk)));
    }
};

template <int kDim>
__device__ __forceinline__ void load_queries(const FlashArgs& args, const FlashBlock& b,
                                             const bf16* q, std::uint32_t to) {
    using Rows = SwizzledRows<kDim>;
    constexpr int kStep = kFlashThreads / Rows::kChunks;
    const auto thread = static_cast<int>(threadIdx.x);
    const int chunk = thread % Rows::kChunks;
    for (int row = thread / Rows::kChunks; row < kFlashRows; row += kStep)
        copy_chunk(to + Rows::offset(row, chunk), q + row * args.q_stride + 8 * chunk,
                   b.first_row + row < args.rows);
}

template <int kDim, bool kCausal, class Source>
__global__ void __launch_bounds__(kFlashThreads, 2)
    flash_kernel(const __grid_constant__ FlashArgs args, const __grid_constant__ Source source) {
    using Shared = FlashShared<kDim>;
    using Rows = SwizzledRows<kDim>;
    extern __shared__ __align__(1024) unsigned char flash_memory[];
    const std::uint32_t queries = shared_address(flash_memory);
    const std::uint32_t stages = queries + Shared::kQueryBytes;
    const auto thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const int warp = thread / kWarp;
    const FlashBlock b = flash_block<kCausal>(args);
    const auto buffer = [&](int first_key) {
        return stages +
               static_cast<std::uint32_t>(first_key / kFlashKeys % 2 * Shared::kStageBytes);
    };
    const auto load = [&](int first_key) {
        const std::uint32_t k = buffer(first_key);
        load_rows<kDim, kFlashKeys, kFlashThreads>(source,
                                                   {b.batch, b.kv_head, first_key, b.end_key},
                                                   thread_anew(), k, k + Shared::kTileBytes);
    };
    load_queries<kDim>(args, b, args.q + b.element<kDim>(args, 0, args.q_stride), queries);
    load(0);
    cp_async_commit();

    // Keys that some of this warp's rows see (none: it only helps to load), and that all of them
    // do.
    const int warp_row = b.first_row + warp * kWarpRows;
    const int some = warp_row >= args.rows ? 0
                     : kCausal             ? b.position + min(args.rows, warp_row + kWarpRows)
                                           : args.keys;
    const int all = kCausal ? b.position + warp_row + 1 : args.keys;
    const std::uint32_t warp_queries =
        queries + static_cast<std::uint32_t>(warp * kWarpRows * Rows::kRowBytes);
    FlashState<kDim> state;
    state.start();
#pragma unroll 1
    for (int first_key = 0; first_key < b.end_key; first_key += kFlashKeys) {
        // The tile is there for all threads, and all are done with the other buffer.
        cp_async_wait<0>();
        __syncthreads();
        if (first_key + kFlashKeys < b.end_key) load(first_key + kFlashKeys);
        cp_async_commit();
        if (first_key >= some) continue;
        const std::uint32_t k = buffer(first_key);
        float s[2][8][4];
        score_tile<kDim>(s, warp_queries + Rows::rows_first(lane), k + Rows::chunks_first(lane));
        if (first_key + kFlashKeys > all)
            mask_tile<kCausal ? 1 : 0>(s, first_key + lane % 4 * 2, kCausal ? all + lane / 4 : all);
        state.add(s, k + Shared::kTileBytes + Rows::rows_first(lane), args.scale_log2);
    }
    if (some == 0) return;
    const FlashBlock end = flash_block<kCausal>(args);
    const int end_warp = thread_anew() / kWarp;
    state.finish(warp_queries, args.out + end.element<kDim>(args, end_warp, args.out_stride),
                 args.out_stride, args.rows - end.first_row - end_warp * kWarpRows);
}

/// `batches` entries of args.rows rows each, kv_heads * args.group query heads.
template <int kDim, bool kCausal, class Source>
void launch_flash(const Context& c, FlashArgs args, const Source& source, int kv_heads,
                  std::int64_t batches) {
    const auto kernel = flash_kernel<kDim, kCausal, Source>;
    constexpr int kBytes = FlashShared<kDim>::kBytes;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "flash_kernel");
    args.row_blocks = (args.rows + kFlashRows - 1) / kFlashRows;
    const dim3 grid(static_cast<unsigned>(batches * args.row_blocks * args.group),
                    static_cast<unsigned>(kv_heads));
    kernel<<<grid, kFlashThreads, kBytes, c.stream>>>(args, source);
    check_launch("flash_kernel");
}

}  // namespace longview::kernels::cuda

// Attention of a few queries over a long paged cache: the keys are split among all multiprocessors
// and the parts merged by a second small kernel.
//
// A block takes 16 rows, (query, head) pairs of one key/value head, through its share of the keys,
// so that K and V are read once for all heads of a group. Its four warps work apart: each has its
// own ring of tiles of 16 keys, filled by asynchronous copies two tiles ahead, and its own softmax;
// they meet at the end. With 8 KB a tile, 4 warps and 2 blocks a multiprocessor 128 KB are under
// way at kDim 128, several times what latency asks for.
//
// Bound: memory; reads K and V once.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/softmax_decode.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 16;  // of one mma
constexpr int kTileKeys = 16;
constexpr int kUnitKeys = kWarps * kTileKeys;  // shares of blocks are whole units
constexpr int kStages = 3;
constexpr int kMergeThreads = 512;
constexpr int kMostBlocksPerSm = 4;

struct DecodeArgs {
    const bf16* q = nullptr;  // [queries, heads * kDim]
    std::int64_t q_stride = 0;
    bf16* out = nullptr;
    std::int64_t out_stride = 0;
    int rows = 0;  // queries * group
    int group = 1;
    int row_tiles = 0;
    int splits = 0;
    std::int64_t position = 0;
    const StepInput* step = nullptr;
    float scale_log2 = 0.0F;
    float* acc = nullptr;     // [kv_heads, row_tiles, splits, kRows, kDim], unnormalised
    float2* stats = nullptr;  // [kv_heads, row_tiles, splits, kRows]: log2 of the unit, sum
};

/// A tile of rows, the keys that at least one of them sees, and how these are shared out in units:
/// the first `longer` shares have one more.
struct RowTile {
    int first_row;
    int rows;  // that exist
    int position;
    int keys;
    int share_units;
    int longer;
    int shares;  // that are not empty, the first ones

    __device__ __forceinline__ RowTile(const DecodeArgs& args, int tile) {
        first_row = tile * kRows;
        rows = min(kRows, args.rows - first_row);
        position = static_cast<int>(args.step != nullptr ? args.step->position : args.position);
        keys = position + (first_row + rows - 1) / args.group + 1;
        const int units = (keys + kUnitKeys - 1) / kUnitKeys;
        share_units = units / args.splits;
        longer = units - share_units * args.splits;
        shares = min(units, args.splits);
    }
    /// First unit of a share, also of the one past the last.
    __device__ __forceinline__ int first_unit(int share) const {
        return share * share_units + min(share, longer);
    }
};

/// Index of a share's results, in units of kRows.
__device__ __forceinline__ std::int64_t part_index(const DecodeArgs& args, int kv_head,
                                                   int row_tile, int split) {
    return (static_cast<std::int64_t>(kv_head) * args.row_tiles + row_tile) * args.splits + split;
}

template <int kDim>
struct Ring {
    static constexpr int kTileBytes = kTileKeys * 2 * kDim;
    static constexpr int kStageBytes = 2 * kTileBytes;
    static constexpr int kWarpBytes = kStages * kStageBytes;
    static constexpr int kBytes = kWarps * kWarpBytes;
    // At the end the same memory holds the warps' results; the padding keeps the eight rows that a
    // warp writes at once in different banks.
    static constexpr int kPadded = kDim + 8;
    static_assert(kWarps * kRows * (kPadded * 4 + 8) <= kBytes);
};

/// The A fragments of a tile's rows; rows that do not exist are zeros.
template <int kDim>
__device__ __forceinline__ void load_fragments(const DecodeArgs& args, int kv_head, int first_row,
                                               std::uint32_t (&a)[kDim / 16][4]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + lane / 4 + 8 * half;
        const bool present = row < args.rows;
        const std::int64_t query = present ? row / args.group : 0;
        const int head = kv_head * args.group + (present ? row % args.group : 0);
        const bf16* const q =
            args.q + query * args.q_stride + static_cast<std::int64_t>(head) * kDim + lane % 4 * 2;
        const bool pairs = present && (reinterpret_cast<std::uintptr_t>(q) & 3U) == 0;
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step)
#pragma unroll
            for (int eight = 0; eight < 2; ++eight) {
                const bf16* const from = q + 16 * step + 8 * eight;
                std::uint32_t v = 0;
                if (pairs) {
                    v = *reinterpret_cast<const std::uint32_t*>(from);
                } else if (present) {
                    const auto* const bits = reinterpret_cast<const std::uint16_t*>(from);
                    v = bits[0] | static_cast<std::uint32_t>(bits[1]) << 16;
                }
                a[step][2 * eight + half] = v;
            }
    }
}

/// What a warp knows of its keys so far; [half] is row lane / 4 + 8 half.
template <int kDim>
struct DecodeState {
    float o[kDim / 8][4];
    float largest[2] = {kMinusInfinity, kMinusInfinity};  // of scale * score in log2
    float sum[2] = {0.0F, 0.0F};                          // of this lane's columns

    __device__ __forceinline__ DecodeState() {
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] = 0.0F;
    }

    /// Takes in 16 keys, of which row `half` sees those below limit[half]. A row may have seen none
    /// so far: then its maximum is minus infinity, and 0 stands in for it.
    __device__ __forceinline__ void add(const std::uint32_t (&q)[kDim / 16][4], std::uint32_t k,
                                        std::uint32_t v, int first_key, const int (&limit)[2],
                                        float scale_log2) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        float s[2][4] = {};
        const std::uint32_t k_row = k + SwizzledRows<kDim>::chunks_first(lane);
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) {
            std::uint32_t b[4];
            ldmatrix4(b, k_row ^ (32 * step));
            mma_bf16(s[0], q[step], b[0], b[1]);
            mma_bf16(s[1], q[step], b[2], b[3]);
        }
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int key = first_key + lane % 4 * 2;
            float top = kMinusInfinity;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& score = s[n][2 * half + i];
                    score = key + 8 * n + i < limit[half] ? score * scale_log2 : kMinusInfinity;
                    top = fmaxf(top, score);
                }
            top = fmaxf(largest[half], quad_max(top));
            const float base = top == kMinusInfinity ? 0.0F : top;
            factor[half] = exp2_approx(largest[half] - base);
            largest[half] = top;
            sum[half] *= factor[half];
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& score = s[n][2 * half + i];
                    score = exp2_approx(score - base);
                    sum[half] += score;
                }
        }
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] *= factor[i / 2];
        // c of the two blocks of eight keys is, rounded, the A fragment of 16 keys.
        const std::uint32_t p[4] = {pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                                    pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
        const std::uint32_t v_row = v + SwizzledRows<kDim>::rows_first(lane);
#pragma unroll
        for (int pair = 0; pair < kDim / 16; ++pair) {
            std::uint32_t b[4];
            ldmatrix4_transposed(b, v_row ^ (32 * pair));
            mma_bf16(o[2 * pair], p, b[0], b[1]);
            mma_bf16(o[2 * pair + 1], p, b[2], b[3]);
        }
    }
};

/// Merges the warps' states, in the order of the warps, and writes the block's part.
template <int kDim>
__device__ __forceinline__ void write_part(const DecodeArgs& args, const DecodeState<kDim>& state,
                                           float* memory, int rows, std::int64_t part) {
    constexpr int kPadded = Ring<kDim>::kPadded;
    auto* const stats = reinterpret_cast<float2*>(memory + kWarps * kRows * kPadded);
    const auto thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;
    const int warp = thread / kWarp;
    __syncthreads();  // no warp reads its ring any more
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = warp * kRows + lane / 4 + 8 * half;
        const float sum = quad_sum(state.sum[half]);
        if (lane % 4 == 0) stats[row] = make_float2(state.largest[half], sum);
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
            *reinterpret_cast<float2*>(memory + row * kPadded + 8 * n + lane % 4 * 2) =
                make_float2(state.o[n][2 * half], state.o[n][2 * half + 1]);
    }
    __syncthreads();
    for (int i = thread; i < rows * kDim; i += kThreads) {
        const int row = i / kDim;
        const int dim = i % kDim;
        float largest = stats[row].x;
#pragma unroll
        for (int w = 1; w < kWarps; ++w) largest = fmaxf(largest, stats[w * kRows + row].x);
        const float base = largest == kMinusInfinity ? 0.0F : largest;
        float sum = 0.0F;
        float acc = 0.0F;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const float2 from = stats[w * kRows + row];
            const float factor = exp2_approx(from.x - base);
            sum = fmaf(factor, from.y, sum);
            acc = fmaf(factor, memory[(w * kRows + row) * kPadded + dim], acc);
        }
        args.acc[part * kRows * kDim + i] = acc;
        if (dim == 0) args.stats[part * kRows + row] = make_float2(largest, sum);
    }
}

/// grid: row tiles (fastest, so that those that read the same keys run together) times shares,
/// key/value heads
template <int kDim, class Source>
__global__ void __launch_bounds__(kThreads, 2)
    softmax_decode_kernel(const __grid_constant__ DecodeArgs args,
                          const __grid_constant__ Source source) {
    extern __shared__ __align__(1024) unsigned char decode_memory[];
    const int row_tile = static_cast<int>(blockIdx.x) % args.row_tiles;
    const int split = static_cast<int>(blockIdx.x) / args.row_tiles;
    const auto kv_head = static_cast<int>(blockIdx.y);
    const RowTile rows(args, row_tile);
    if (split >= rows.shares) return;
    const int first_unit = rows.first_unit(split);
    const int end_unit = rows.first_unit(split + 1);

    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const std::uint32_t ring =
        shared_address(decode_memory) + static_cast<std::uint32_t>(warp * Ring<kDim>::kWarpBytes);
    const auto tile_key = [&](int unit) { return unit * kUnitKeys + warp * kTileKeys; };
    const auto load = [&](int unit) {
        const int key = tile_key(unit);
        if (unit >= end_unit || key >= rows.keys) return;
        const std::uint32_t k = ring + static_cast<std::uint32_t>((unit - first_unit) % kStages *
                                                                  Ring<kDim>::kStageBytes);
        load_rows<kDim, kTileKeys, kWarp>(source, {0, kv_head, key, rows.keys}, lane, k,
                                          k + Ring<kDim>::kTileBytes);
    };
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
        load(first_unit + i);
        cp_async_commit();
    }
    std::uint32_t q[kDim / 16][4];
    load_fragments<kDim>(args, kv_head, rows.first_row, q);
    // Rows beyond the last see what the last one sees; nobody reads their results.
    int limit[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
        limit[half] = rows.position + 1 +
                      min(rows.first_row + lane / 4 + 8 * half, args.rows - 1) / args.group;
    DecodeState<kDim> state;
    int stage = 0;
#pragma unroll 1
    for (int unit = first_unit; unit < end_unit; ++unit) {
        // This unit's tile is there for all lanes, and all are done with the one before, whose
        // place the next copy takes.
        cp_async_wait<kStages - 2>();
        __syncwarp();
        load(unit + kStages - 1);
        cp_async_commit();
        const std::uint32_t k = ring + static_cast<std::uint32_t>(stage * Ring<kDim>::kStageBytes);
        stage = stage + 1 == kStages ? 0 : stage + 1;
        const int key = tile_key(unit);
        if (key >= rows.keys) continue;
        state.add(q, k, k + Ring<kDim>::kTileBytes, key, limit, args.scale_log2);
    }
    cp_async_wait<0>();
    write_part<kDim>(args, state, reinterpret_cast<float*>(decode_memory), rows.rows,
                     part_index(args, kv_head, row_tile, split));
}

/// One block a row. Threads with the same dim take every (kMergeThreads / kDim)-th share; their
/// sums are added in order.
template <int kDim>
__global__ void __launch_bounds__(kMergeThreads)
    softmax_merge_kernel(const __grid_constant__ DecodeArgs args) {
    constexpr int kParts = kMergeThreads / kDim;
    __shared__ float partial[kMergeThreads];
    const auto row = static_cast<int>(blockIdx.x);  // of the key/value head
    const auto kv_head = static_cast<int>(blockIdx.y);
    const int row_tile = row / kRows;
    const RowTile rows(args, row_tile);
    const std::int64_t first = part_index(args, kv_head, row_tile, 0);
    const float2* const stats = args.stats + first * kRows + row % kRows;
    const float* const acc = args.acc + (first * kRows + row % kRows) * kDim;
    const auto thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp;

    float largest = kMinusInfinity;
    for (int split = lane; split < rows.shares; split += kWarp)
        largest = fmaxf(largest, stats[split * kRows].x);
    largest = warp_max(largest);
    float sum = 0.0F;
    for (int split = lane; split < rows.shares; split += kWarp) {
        const float2 part = stats[split * kRows];
        sum = fmaf(exp2_approx(part.x - largest), part.y, sum);
    }
    sum = warp_sum(sum);

    const int dim = thread % kDim;
    float total = 0.0F;
#pragma unroll 4
    for (int split = thread / kDim; split < rows.shares; split += kParts)
        total = fmaf(exp2_approx(stats[split * kRows].x - largest),
                     acc[static_cast<std::int64_t>(split) * kRows * kDim + dim], total);
    partial[thread] = total;
    __syncthreads();
    if (thread >= kDim) return;
    total = partial[thread];
#pragma unroll
    for (int part = 1; part < kParts; ++part) total += partial[part * kDim + thread];
    const std::int64_t query = row / args.group;
    const std::int64_t head = static_cast<std::int64_t>(kv_head) * args.group + row % args.group;
    args.out[query * args.out_stride + head * kDim + dim] = __float2bfloat16(total / sum);
}

template <int kDim, class Source>
void launch_decode(const Context& c, const DecodeArgs& args, const Source& source) {
    const auto kernel = softmax_decode_kernel<kDim, Source>;
    constexpr int kBytes = Ring<kDim>::kBytes;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "softmax_decode_kernel");
    const dim3 grid(static_cast<unsigned>(args.row_tiles * args.splits),
                    static_cast<unsigned>(source.kv_heads));
    kernel<<<grid, kThreads, kBytes, c.stream>>>(args, source);
    check_launch("softmax_decode_kernel");
    const dim3 rows(static_cast<unsigned>(args.rows), static_cast<unsigned>(source.kv_heads));
    softmax_merge_kernel<kDim><<<rows, kMergeThreads, 0, c.stream>>>(args);
    check_launch("softmax_merge_kernel");
}

template <int kDim>
void decode(const Context& c, const SoftmaxAttentionParams& p) {
    DecodeArgs args;
    args.q = static_cast<const bf16*>(p.q.data);
    args.q_stride = p.q.stride;
    args.out = static_cast<bf16*>(p.out.data);
    args.out_stride = p.out.stride;
    args.group = p.heads / p.kv.kv_heads;
    args.rows = static_cast<int>(p.q.rows) * args.group;
    args.row_tiles = (args.rows + kRows - 1) / kRows;
    args.position = p.position;
    args.step = c.step;
    args.scale_log2 = p.scale * kLog2E;
    // One wave of blocks for one tile of rows.
    const int blocks_per_sm = std::clamp(
        static_cast<int>(c.device.shared_memory_bytes / Ring<kDim>::kBytes), 1, kMostBlocksPerSm);
    args.splits = std::max(1, blocks_per_sm * c.device.sm_count / p.kv.kv_heads);
    const std::int64_t parts =
        static_cast<std::int64_t>(p.kv.kv_heads) * args.row_tiles * args.splits;
    args.acc = c.scratch->take_array<float>(parts * kRows * kDim);
    args.stats = c.scratch->take_array<float2>(parts * kRows);
    if (fast_pages(p.kv, kTileKeys)) {
        launch_decode<kDim>(c, args, PagedKv<true>(p.kv));
    } else {
        launch_decode<kDim>(c, args, PagedKv<false>(p.kv));
    }
}

}  // namespace

void softmax_decode(const Context& c, const SoftmaxAttentionParams& p) {
    if (p.kv.head_dim == 64) {
        decode<64>(c, p);
    } else {
        decode<128>(c, p);
    }
}

}  // namespace longview::kernels::cuda

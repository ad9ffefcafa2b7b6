// The blocked form of lightning attention (model-spec 3.5; Qin et al. 2024, arXiv:2401.04658).
//
// A block of four warps takes one head, 64 columns of v and a run of tiles of 64 rows. With w(t) =
// exp(-slope t), S the state before the tile and m the tile's rows:
//   O[i]  = w(i + 1) q_i^T S + sum over j <= i of bf16(w(i - j) q_i.k_j) v_j
//   S'    = w(m) S + sum over j of k_j bf16(w(m - 1 - j) v_j)^T
// S and all sums are fp32; as an operand of q^T S, S is rounded to bf16. Everything is computed
// transposed, 16 columns of v a warp: the fp32 state of a warp then has, in its registers, the
// layout of an A operand, and neither it nor the weighted v goes through shared memory. Only the
// scores do, 16 rows of k a warp.
//
// Compiled for sm_90a the products are wgmma instructions (in the same fragments: the four warps
// are a warpgroup), else mma.sync. Cost of a tile at head_dim 128, for the block, by count:
//   wgmma     900 cycles of the tensor cores, in this order: scores 256, q^T S 256, update 256,
//             scores x v 128; B operands are read once for all warps. Shared memory: operands 72 KB
//             and v 8, copies 40, scores and staged outputs 24: 1150 cycles, most of them behind
//             the products. About 750 instructions a warp, one warp a scheduler, nearly all behind
//             a product that does not wait for them. Exposed: one barrier, the start of the scores,
//             the scores' way through shared memory where it takes longer than q^T S. 1100 to 1400
//             cycles in all; the bytes (40 KB in, 8 KB out) alone take 1800 on an H200.
//   mma.sync  848 instructions (1400 cycles at the 1200 multiply-adds a cycle it reaches on
//             Hopper), 344 ldmatrix4 and the copies (1400 and 320 cycles of shared memory), one
//             warp a scheduler with its latencies exposed: 3000 cycles measured on an H200. More
//             warps would not help much there: separate ones for the scores read q once more and
//             come to 2350 cycles of shared memory.
// q and k are read by both blocks of a head, the second time from L2. One block an SM: 128 of them
// at 64 heads.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/check.h"
#include "kernels/cuda/lightning.h"
#include "kernels/cuda/lightning_prefill.cuh"
#include "kernels/runtime/error.h"

namespace longview::kernels::cuda {
namespace lightning {
namespace {

struct PrefillArgs {
    const bf16* qkv;
    int qkv_stride_bytes;
    bool out_aligned;  // to 16 bytes, all rows
    bf16* out;
    std::int64_t out_stride;
    const float* slopes;
    const float* state_in;  // [segments, heads, kDim, kDim]
    float* state_out;       // outputs: [heads, kDim, kDim]; states: [segments - 1, heads, ...]
    std::int64_t rows;
    int first_in_tile;  // position of the first row in its tile
    int tiles, segment_tiles;
    int heads;
};

/// Rows [first, first + count) of the call make up tile `tile`.
struct TileRows {
    std::int64_t first;
    int count;
    __host__ __device__ TileRows(const PrefillArgs& a, int tile) {
        const std::int64_t begin = std::int64_t{tile} * kTile - a.first_in_tile;
        const std::int64_t end = begin + kTile < a.rows ? begin + kTile : a.rows;
        first = begin > 0 ? begin : 0;
        count = static_cast<int>(end - first);
    }
};

/// Rows of the segment's tiles [first, last).
__host__ __device__ inline std::int64_t rows_of(const PrefillArgs& a, int first, int last) {
    const TileRows end(a, last - 1);
    return end.first + end.count - TileRows(a, first).first;
}

/// Copies one tile into shared memory, 16 bytes a thread at a time; rows the tile lacks become
/// zeros. A warp brings a few rows at a time, of kGroup chunks that lie side by side in memory.
template <int kDim>
struct TileLoader {
    using L = Layout<kDim>;
    static constexpr int kDimChunks = kDim / 8;
    static constexpr int kValueChunks = (kDim < kSlice ? kDim : kSlice) / 8;

    const char* row;  // the tile's first row, the head's q
    const char* values;
    int stride_bytes;
    int count;  // 0: the tile does not exist
    std::uint32_t to;
    int lane, warp;

    __device__ TileLoader(const PrefillArgs& a, int head, int slice, int tile, int last,
                          std::uint32_t to_, const Lane& l)
        : stride_bytes(a.qkv_stride_bytes), to(to_), lane(l.id), warp(l.warp) {
        const TileRows rows(a, tile < last ? tile : last - 1);
        count = tile < last ? rows.count : 0;
        row = reinterpret_cast<const char*>(a.qkv + std::int64_t{head} * 3 * kDim) +
              rows.first * stride_bytes;
        values = row + 4 * kDim + slice * kSlice * 2;
    }

    /// Step `i` of copying kGroup chunks a row from `from`; each kChunks of them make a row of a
    /// panel, kPart bytes after the one before.
    template <int kChunks, int kGroup, int kPart>
    __device__ void copy(const char* from, std::uint32_t part, int i) const {
        static_assert(kWarp % kGroup == 0 && kGroup % kChunks == 0);
        constexpr int kRows = kWarp / kGroup;
        constexpr int kStep = kRows * kWarps;
        static_assert(kStep % 4 == 0 && (kStep % 8 == 0 || kChunks >= 8));
        const int first = warp * kRows + lane / kGroup;  // below kStep
        const int r = i * kStep + first;
        // chunk_offset(r, ...): the bits of r that permute are those of i * kStep and of first.
        const std::uint32_t at =
            (chunk_offset<kChunks>(first, lane % kChunks) ^ ((i * kStep & 7) * 16)) +
            i * kStep * kChunks * 16 + (lane % kGroup / kChunks) * kPart;
        // The address of a row that is not there is formed, but nothing is read.
        cp_async16(part + at,
                   from + 16 * (lane % kGroup) + std::int64_t{first} * stride_bytes +
                       std::int64_t{i * kStep} * stride_bytes,
                   r < count ? 16 : 0);
    }
    static constexpr int kQueryKeySteps = kTile / (kWarp / (2 * kDimChunks) * kWarps);
    static constexpr int kKeySteps = kTile / (kWarp / kDimChunks * kWarps);
    static constexpr int kValueSteps = kTile / (kWarp / kValueChunks * kWarps);
    static_assert(kQueryKeySteps == 2 * (kDim / 16) && kValueSteps <= kDim / 16);

    /// Part `step` of kDim / 16 of the copies of q, k and v.
    __device__ void part(int step) const {
        copy<L::kChunks, 2 * kDimChunks, L::kPanel>(row, to, 2 * step);
        copy<L::kChunks, 2 * kDimChunks, L::kPanel>(row, to, 2 * step + 1);
        if (step < kValueSteps) copy_values(step);
    }
    /// k and v only.
    __device__ void keys_and_values() const {
#pragma unroll
        for (int i = 0; i < kKeySteps; ++i)
            copy<L::kChunks, kDimChunks, L::kPanel>(row + 2 * kDim, to + L::kKeys, i);
#pragma unroll
        for (int i = 0; i < kValueSteps; ++i) copy_values(i);
    }

  private:
    /// Rows of kSlice columns in shared memory; where a head has fewer, the warps beyond them
    /// compute on whatever lies there and store nothing.
    __device__ void copy_values(int i) const {
        constexpr int kStep = kWarp / kValueChunks * kWarps;
        static_assert(kStep % 8 == 0);
        const int first = warp * (kWarp / kValueChunks) + lane / kValueChunks;
        const int chunk = lane % kValueChunks;
        cp_async16(
            to + L::kValues + chunk_offset<kSlice / 8>(first, chunk) + i * kStep * kSlice * 2,
            values + 16 * chunk + std::int64_t{first} * stride_bytes +
                std::int64_t{i * kStep} * stride_bytes,
            i * kStep + first < count ? 16 : 0);
    }
};

/// Writes a tile's outputs from shared memory, rows of up to 128 bytes.
template <int kDim>
struct OutputWriter {
    static constexpr int kRowChunks = (kDim < kSlice ? kDim : kSlice) / 8;
    static constexpr int kRows = kThreads / 8;  // at a time
    static constexpr int kSteps = kTile / kRows;

    bf16* out;  // of this thread's first row and its chunk
    std::int64_t stride;
    const char* staged;
    int row;
    int count;  // rows of the tile; 0: there is none

    /// With `exists` false nothing will be written.
    __device__ OutputWriter(const PrefillArgs& a, int head, int slice, int tile, bool exists,
                            const char* staged_)
        : stride(a.out_stride), staged(staged_) {
        const int thread = static_cast<int>(threadIdx.x);
        const int chunk = thread % 8;
        const TileRows rows(a, exists ? tile : 0);
        row = thread / 8;
        count = exists && chunk < kRowChunks ? rows.count : 0;
        out = a.out + (rows.first + row) * stride + std::int64_t{head} * kDim + slice * kSlice +
              8 * chunk;
        staged += chunk_offset<8>(row, chunk);  // kRows is a multiple of 8
    }
    /// Rows of part `step` of kSteps, where outputs are aligned to 16 bytes.
    __device__ void write(int step) const {
        const uint4 v = *reinterpret_cast<const uint4*>(staged + step * kRows * 128);
        store16_if(row + step * kRows < count, out + step * kRows * stride, v);
    }
    __device__ void write_unaligned() const {
#pragma unroll 1
        for (int step = 0; step < kSteps && row + step * kRows < count; ++step) {
            const auto* const v = reinterpret_cast<const bf16*>(staged + step * kRows * 128);
            bf16* const to = out + step * kRows * stride;
#pragma unroll
            for (int x = 0; x < 8; ++x) to[x] = v[x];
        }
    }
};

/// What a block works on: a head, a slice of its columns of v, the tiles [first, last).
template <int kDim, int kStages>
struct Block {
    using L = Layout<kDim>;
    static constexpr int kSlices = kDim > kSlice ? kDim / kSlice : 1;

    const PrefillArgs& a;
    Lane l;
    int slice, head, segment;
    int first, last;
    std::uint32_t tiles;  // in shared memory, kStages of them
    char* scores;
    char* staged;
    Decays decays;
    int stage = 0;  // where the tile at hand lies

    __device__ Block(const PrefillArgs& args, char* shared)
        : a(args),
          slice(static_cast<int>(blockIdx.x) % kSlices),
          head(static_cast<int>(blockIdx.x) / kSlices),
          segment(static_cast<int>(blockIdx.y)),
          first(segment * a.segment_tiles),
          last(min((segment + 1) * a.segment_tiles, a.tiles)),
          tiles(shared_address(shared)),
          scores(shared + kStages * L::kTileBytes),
          staged(scores + L::kSquare),
          decays(staged + L::kSquare) {}

    __device__ std::uint32_t tile_at() const { return tiles + stage * L::kTileBytes; }
    __device__ void advance() { stage = stage == kStages - 1 ? 0 : stage + 1; }
    /// For tile first + ahead < first + kStages.
    __device__ TileLoader<kDim> early_loader(int ahead) const {
        return loader(first + ahead, ahead);
    }
    /// While `tile` is at hand: for the one that takes the place of the tile before it.
    __device__ TileLoader<kDim> next_loader(int tile) const {
        return loader(tile + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
    }
    /// While `tile` is at hand: of the outputs of the one before it. Writes them itself if they are
    /// not aligned.
    __device__ OutputWriter<kDim> writer(int tile) const {
        if (tile > first && !a.out_aligned) write_unaligned(tile - 1);
        return {a, head, slice, tile - 1, tile > first && a.out_aligned, staged};
    }
    __device__ void write_last() const {
        if (!a.out_aligned) return write_unaligned(last - 1);
        const OutputWriter<kDim> last_writer(a, head, slice, last - 1, true, staged);
#pragma unroll
        for (int step = 0; step < OutputWriter<kDim>::kSteps; ++step) last_writer.write(step);
    }

  private:
    __device__ TileLoader<kDim> loader(int tile, int to) const {
        return {a, head, slice, tile, last, tiles + to * L::kTileBytes, l};
    }
    __device__ void write_unaligned(int tile) const {
        OutputWriter<kDim>(a, head, slice, tile, true, staged).write_unaligned();
    }
};

// The tiles of a block, one after the other, with mma.sync and with wgmma. The first kStages - 1
// are on their way when these are called, and the decays are in shared memory.

template <int kDim, int kStages>
__device__ inline void add_states(Block<kDim, kStages>& b, State<kDim>& state) {
    using L = Layout<kDim>;
    for (int tile = b.first; tile < b.last; ++tile) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // this tile is in place; everyone is done with the last one
        b.next_loader(tile).keys_and_values();
        cp_async_commit();
        const std::uint32_t at = b.tile_at();
        b.advance();
        const int count = TileRows(b.a, tile).count;
        Values values;
        values.load(at + L::kValues, b.l);
        state.scale(b.decays.from_start[count - 1]);
        add_rows<kDim, 0, kTile / 16>(state, values, b.decays.to_end + (kTile - count),
                                      at + L::kKeys, b.l, [](int) {});
    }
}

template <int kDim, int kStages>
__device__ inline void compute_outputs(Block<kDim, kStages>& b, State<kDim>& state,
                                       const ScoreDecays& score_decays) {
    using L = Layout<kDim>;
    const Lane& l = b.l;
    for (int tile = b.first; tile < b.last; ++tile) {
        cp_async_wait<kStages - 2>();
        // This tile is in place; everyone is done with the last one's scores, q, k and v, and has
        // staged its outputs.
        __syncthreads();
        const auto next = b.next_loader(tile);
        const std::uint32_t at = b.tile_at();
        b.advance();
        const int count = TileRows(b.a, tile).count;
        const auto writer = b.writer(tile);
        Fragments out, products;
        multiply_queries<kDim>(state, at, l, out, products, [&](int step) { next.part(step); });
        cp_async_commit();
        Values values;
        values.load(at + L::kValues, l);
        state.scale(b.decays.from_start[count - 1]);
        const float* const weights = b.decays.to_end + (kTile - count);
        // Everything that is not a product hides behind one half of the state's update or the
        // other: before the barrier the scores and the last tile's outputs, after it these.
        ScoreWriter score_writer(products, score_decays, b.scores, l);
        add_rows<kDim, 0, 2>(state, values, weights, at + L::kKeys, l, [&](int piece) {
            score_writer.write(piece, l);
            if (piece % 4 == 0) writer.write(piece / 4);
        });
        __syncthreads();  // the scores of all warps are there; the staged outputs are written
        scale_outputs(out, b.decays.from_start, l);
        add_scores(out, values, shared_address(b.scores), l);
        add_rows<kDim, 2, 4>(state, values, weights, at + L::kKeys, l,
                             [&](int piece) { stage_outputs(out, piece, b.staged, l); });
    }
}

template <int kDim, int kStages>
__device__ inline void wgmma_states(Block<kDim, kStages>& b, State<kDim>& state) {
    using L = Layout<kDim>;
    std::uint32_t weighted[kTile / 16][4] = {};
    for (int tile = b.first; tile < b.last; ++tile) {
        cp_async_wait<kStages - 2>();
        wgmma_publish();
        wgmma_wait<0>();
        hold(state.s);
        hold(weighted);
        __syncthreads();  // this tile is in place; everyone is done with the last one
        b.next_loader(tile).keys_and_values();
        cp_async_commit();
        const std::uint32_t at = b.tile_at();
        b.advance();
        const int count = TileRows(b.a, tile).count;
        Values values;
        values.load(at + L::kValues, b.l);
        state.scale(b.decays.from_start[count - 1]);
        values.weigh(b.decays.to_end + (kTile - count), b.l, weighted);
        wgmma_fence();
        wgmma_add_rows<kDim>(state, weighted, at);
        wgmma_commit();
    }
    wgmma_wait<0>();
    hold(state.s);
    hold(weighted);
}

template <int kDim, int kStages>
__device__ inline void wgmma_outputs(Block<kDim, kStages>& b, State<kDim>& state,
                                     const ScoreDecays& score_decays) {
    using L = Layout<kDim>;
    const Lane& l = b.l;
    Fragments out = {};
    const auto stage = [&] {
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) stage_outputs(out, piece, b.staged, l);
    };
    for (int tile = b.first; tile < b.last; ++tile) {
        cp_async_wait<kStages - 2>();
        wgmma_publish();
        // This tile is in place; everyone is done with the last one's q, k, v and scores, and with
        // the staged outputs of the one before that.
        __syncthreads();
        const auto next = b.next_loader(tile);
        const std::uint32_t at = b.tile_at();
        b.advance();
        const int count = TileRows(b.a, tile).count;

        Fragments products;
        wgmma_fence();
        wgmma_scores<kDim>(products, at);
        wgmma_commit();
        wgmma_wait<1>();  // nothing, but ptxas wants to see it before the registers are read
        hold(out);
        hold(state.s);
        // Behind the scores: the last tile's outputs (nobody's, at the first one).
        std::uint32_t rounded[kDim / 16][4];
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) state.operand(step, rounded[step]);
        stage();
        wgmma_fence();
        wgmma_queries<kDim>(out, rounded, at);
        wgmma_commit();
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) next.part(step);
        cp_async_commit();
        Values values;
        values.load(at + L::kValues, l);
        state.scale(b.decays.from_start[count - 1]);

        wgmma_wait<1>();  // the scores
        hold(products);
        // Behind q^T S.
        ScoreWriter score_writer(products, score_decays, b.scores, l);
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) score_writer.write(piece, l);
        wgmma_publish();
        std::uint32_t weighted[kTile / 16][4];
        values.weigh(b.decays.to_end + (kTile - count), l, weighted);
        wgmma_fence();
        wgmma_add_rows<kDim>(state, weighted, at);
        wgmma_commit();

        // Behind the state's update.
        __syncthreads();  // the scores of all warps are there, and the last tile's outputs staged
        wgmma_wait<1>();
        hold(out);
        hold(rounded);
        scale_outputs(out, b.decays.from_start, l);
        wgmma_fence();
        wgmma_add_scores(out, values, shared_address(b.scores));
        wgmma_commit();
        const auto writer = b.writer(tile);
#pragma unroll
        for (int step = 0; step < OutputWriter<kDim>::kSteps; ++step) writer.write(step);
        // In flight across the loop's end, ptxas would serialize them with the scores.
        wgmma_wait<0>();
        hold(out);
        hold(values.v);
        hold(state.s);
        hold(weighted);
    }
    __syncthreads();  // the staged outputs are written
    stage();
}

/// grid (slices of a head * heads, segments; kStatesOnly: segments - 1).
///   kStatesOnly: state_out[segment] = what the segment's rows add to the state at its end.
///   else: outputs, from state_in[segment] on; the last segment stores the state after it.
template <int kDim, int kStages, bool kStatesOnly>
__global__ __launch_bounds__(kThreads) void lightning_prefill_kernel(const PrefillArgs a) {
    static_assert(kDim % 32 == 0 && (kDim <= kSlice || kDim % kSlice == 0));
    constexpr bool kWgmma = kHasWgmma && kDim >= kSlice;  // its rows are of 64 columns
    extern __shared__ __align__(1024) char shared[];
    Block<kDim, kStages> b(a, shared);
    const Lane& l = b.l;
    const float slope = a.slopes[b.head];
    if constexpr (kStatesOnly) {
        // Rows this many tiles before the end weigh exp(-104) or less, which is 0 in fp32.
        const float tiles_that_count = 104.0F / (slope * kTile) + 2.0F;
        if (tiles_that_count < static_cast<float>(b.last - b.first))
            b.first = b.last - static_cast<int>(tiles_that_count);
    }

    for (int i = 0; i < kStages - 1; ++i) {
        const auto load = b.early_loader(i);
        if constexpr (kStatesOnly) {
            load.keys_and_values();
        } else {
#pragma unroll
            for (int step = 0; step < kDim / 16; ++step) load.part(step);
        }
        cp_async_commit();
    }
    b.decays.fill(slope, static_cast<int>(threadIdx.x));

    const int first_col = b.slice * kSlice + 16 * l.warp;
    const bool has_columns = kDim >= kSlice || first_col < kDim;
    const std::int64_t head_at = std::int64_t{b.head} * kDim * kDim + first_col;
    const std::int64_t segment_at = std::int64_t{b.segment} * a.heads * kDim * kDim;
    State<kDim> state;
    if (kStatesOnly || !has_columns)
        state.zero();
    else
        state.load(a.state_in + segment_at + head_at, l);

    if constexpr (kStatesOnly) {
        if constexpr (kWgmma)
            wgmma_states(b, state);
        else
            add_states(b, state);
        cp_async_wait<0>();
        if (has_columns) state.store(a.state_out + segment_at + head_at, l);
    } else {
        const ScoreDecays score_decays(slope, l);
        if constexpr (kWgmma)
            wgmma_outputs(b, state, score_decays);
        else
            compute_outputs(b, state, score_decays);
        cp_async_wait<0>();
        __syncthreads();
        b.write_last();
        if (b.last == a.tiles && has_columns) state.store(a.state_out + head_at, l);
    }
}

/// grid covers heads * dims * dims. On entry states[x] (x < segments - 1) is what segment x adds;
/// on return it is the state segment x begins with, given the one before the call.
__global__ void lightning_scan_kernel(const PrefillArgs a, const float* before, float* states,
                                      int segments, int state_size) {
    const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const std::int64_t count = std::int64_t{a.heads} * state_size;
    if (i >= count) return;
    const float slope = a.slopes[i / state_size];
    float carry = before[i];
    for (int x = 0; x < segments; ++x) {
        const float added = x + 1 < segments ? states[x * count + i] : 0.0F;
        states[x * count + i] = carry;
        if (x + 1 == segments) break;
        const int first = x * a.segment_tiles;
        const auto rows = static_cast<float>(rows_of(a, first, first + a.segment_tiles));
        carry = fmaf(expf(-slope * rows), carry, added);
    }
}

template <int kDim, int kStages, bool kStatesOnly>
void launch_prefill(const Context& c, const PrefillArgs& a, std::int64_t segments) {
    constexpr int kBytes = Layout<kDim>::bytes(kStages);
    constexpr int kSlices = kDim > kSlice ? kDim / kSlice : 1;
    const auto kernel = lightning_prefill_kernel<kDim, kStages, kStatesOnly>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
          "shared memory of lightning_prefill");
    const dim3 grid(static_cast<unsigned>(a.heads * kSlices), static_cast<unsigned>(segments));
    kernel<<<grid, kThreads, kBytes, c.stream>>>(a);
    check_launch("lightning_prefill");
}

template <int kDim, int kStages>
void launch_segments(const Context& c, PrefillArgs a, float* state) {
    const std::int64_t segments = (std::int64_t{a.tiles} + a.segment_tiles - 1) / a.segment_tiles;
    LONGVIEW_CHECK(segments <= 65535, "so many segments do not fit a launch");
    a.state_in = state;
    if (segments > 1) {
        const std::int64_t state_size = kDim * kDim;
        const std::int64_t count = a.heads * state_size;
        auto* const states = c.scratch->take_array<float>(segments * count);
        a.state_out = states;
        launch_prefill<kDim, kStages, true>(c, a, segments - 1);
        constexpr int kScanThreads = 128;
        const auto blocks = static_cast<unsigned>((count + kScanThreads - 1) / kScanThreads);
        lightning_scan_kernel<<<blocks, kScanThreads, 0, c.stream>>>(
            a, state, states, static_cast<int>(segments), static_cast<int>(state_size));
        check_launch("lightning_scan");
        a.state_in = states;
    }
    a.state_out = state;
    launch_prefill<kDim, kStages, false>(c, a, segments);
}

template <int kDim>
void launch_stages(const Context& c, const PrefillArgs& a, float* state, int stages) {
    if (stages >= 3)
        launch_segments<kDim, 3>(c, a, state);
    else
        launch_segments<kDim, 2>(c, a, state);
}

std::size_t shared_bytes(int head_dim, int stages) {
    switch (head_dim) {
        case 32:
            return static_cast<std::size_t>(Layout<32>::bytes(stages));
        case 64:
            return static_cast<std::size_t>(Layout<64>::bytes(stages));
        case 128:
            return static_cast<std::size_t>(Layout<128>::bytes(stages));
        default:
            throw Error(Category::kUnsupported,
                        "Lightning attention on a GPU needs heads of 32, 64 or 128 dimensions.");
    }
}

}  // namespace
}  // namespace lightning

LightningPlan plan_lightning(int heads, int head_dim, std::int64_t tiles,
                             const DeviceLimits& device) {
    LightningPlan plan;
    plan.stages = device.shared_memory_bytes >= lightning::shared_bytes(head_dim, 3) ? 3 : 2;
    if (device.shared_memory_bytes < lightning::shared_bytes(head_dim, plan.stages))
        throw Error(Category::kUnsupported,
                    "This GPU has too little shared memory for lightning attention.");
    plan.segment_tiles = std::max<std::int64_t>(tiles, 1);
    // Blocks that a head's columns alone make, and those that find room at a time: one an SM, or
    // two where their tiles are small.
    const std::int64_t columns = std::int64_t{heads} * std::max(1, head_dim / lightning::kSlice);
    const std::int64_t room = std::int64_t{device.sm_count} * (head_dim <= 64 ? 2 : 1);
    constexpr std::int64_t kShortest = 4;  // tiles of a segment
    const std::int64_t segments = std::min(room / columns, tiles / kShortest);
    if (segments < 2) return plan;
    const std::int64_t segment_tiles = (tiles + segments - 1) / segments;
    // In tiles' times, by estimate: a state costs about half of an output, and three launches
    // instead of one with the scan between them about ten tiles.
    if (segment_tiles + segment_tiles / 2 + 10 >= tiles) return plan;
    plan.segment_tiles = segment_tiles;
    plan.segments = (tiles + segment_tiles - 1) / segment_tiles;
    return plan;
}

void lightning_prefill(const Context& c, const LightningParams& p, const LightningPlan& plan) {
    if (p.qkv.rows == 0) return;
    lightning::PrefillArgs a{};
    a.qkv = static_cast<const bf16*>(p.qkv.data);
    a.qkv_stride_bytes = static_cast<int>(p.qkv.stride * 2);
    a.out_aligned = reinterpret_cast<std::uintptr_t>(p.out.data) % 16 == 0 && p.out.stride % 8 == 0;
    a.out = static_cast<bf16*>(p.out.data);
    a.out_stride = p.out.stride;
    a.slopes = p.slopes;
    a.rows = p.qkv.rows;
    a.first_in_tile = static_cast<int>(p.position % kLightningTile);
    const std::int64_t tiles = lightning_tiles(p.position, p.qkv.rows);
    LONGVIEW_CHECK(tiles < (1 << 30), "more rows than a call can have");
    a.tiles = static_cast<int>(tiles);
    a.segment_tiles = static_cast<int>(std::min(plan.segment_tiles, tiles));
    a.heads = p.heads;
    LONGVIEW_CHECK(plan.segment_tiles >= 1 && plan.stages >= 2, "a plan needs tiles and stages");
    switch (p.head_dim) {
        case 32:
            return lightning::launch_stages<32>(c, a, p.state, plan.stages);
        case 64:
            return lightning::launch_stages<64>(c, a, p.state, plan.stages);
        case 128:
            return lightning::launch_stages<128>(c, a, p.state, plan.stages);
        default:
            lightning::shared_bytes(p.head_dim, 2);  // says what is supported
    }
}

}  // namespace longview::kernels::cuda

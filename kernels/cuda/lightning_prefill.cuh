// Device side of the blocked form of lightning attention; see lightning_prefill.cu.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace longview::kernels::cuda::lightning {

constexpr int kTile = static_cast<int>(kLightningTile);  // rows of a tile
constexpr int kSlice = 64;                               // columns of v a block takes
constexpr int kWarps = 4;                                // 16 of those columns each
constexpr int kThreads = kWarps * kWarp;
static_assert(kTile == 16 * kWarps && kSlice == 16 * kWarps);

/// Where 16-byte chunk `chunk` of a row lies among rows of kChunks chunks. The chunks of a row are
/// permuted by the row's last bits, so that eight consecutive rows at one chunk (ldmatrix, and the
/// stores here) touch all banks once. For even x: offset(row, x + b) == offset(row, b) ^ (16 * x).
template <int kChunks>
__device__ inline std::uint32_t chunk_offset(int row, int chunk) {
    const int flip = kChunks >= 8 ? row & 7 : (row >> 1) & 3;
    return static_cast<std::uint32_t>(row * kChunks + (chunk ^ flip)) * 16;
}

/// Bytes in shared memory: kStages tiles of q, k [kTile, kDim] and v [kTile, kSlice]; scores
/// [j, i] and outputs [i, e] as bf16; tables of decays. q and k lie in panels of up to 64 columns,
/// one after the other: with rows of 128 bytes, permuted as they are, wgmma can read them.
template <int kDim>
struct Layout {
    static constexpr int kPanelDims = kDim < 64 ? kDim : 64;
    static constexpr int kPanelSteps = kPanelDims / 16;
    static constexpr int kChunks = kPanelDims / 8;  // of a row of a panel
    static constexpr int kPitch = 2 * kPanelDims;
    static constexpr int kPanel = kTile * kPitch;
    static constexpr int kKeys = kDim / kPanelDims * kPanel;  // from a tile's start; q is first
    static constexpr int kValues = 2 * kKeys;
    static constexpr int kTileBytes = kValues + kTile * kSlice * 2;
    static constexpr int kSquare = kTile * kSlice * 2;
    static constexpr int kTableBytes = 3 * kTile * 4;
    static constexpr int bytes(int stages) {
        return stages * kTileBytes + 2 * kSquare + kTableBytes;
    }
    static_assert(kTileBytes % 1024 == 0 && kSquare % 1024 == 0);

    /// Address of the dims 16 step ... + 15 in a row of q or k, from that of the first 16.
    __device__ static std::uint32_t dims(std::uint32_t first, int step) {
        return (first ^ (32 * (step % kPanelSteps))) + step / kPanelSteps * kPanel;
    }
};

/// exp(-slope t) for the distances in a tile; every one with t >= 0.
struct Decays {
    float* from_start;  // [kTile] t = i + 1: of the incoming state at row i
    float* to_end;      // [2 kTile] at x < kTile: t = kTile - 1 - x, then 0

    __device__ explicit Decays(char* shared) {
        from_start = reinterpret_cast<float*>(shared);
        to_end = from_start + kTile;
    }
    __device__ void fill(float slope, int thread) const {
        if (thread < kTile) from_start[thread] = expf(-slope * static_cast<float>(thread + 1));
        if (thread < 2 * kTile)
            to_end[thread] =
                thread < kTile ? expf(-slope * static_cast<float>(kTile - 1 - thread)) : 0.0F;
    }
};
static_assert(kThreads >= 2 * kTile);

/// Position of the lane in fragments (device.cuh): g = lane / 4, t = lane % 4.
struct Lane {
    int id, warp, g, t;
    __device__ Lane()
        : id(static_cast<int>(threadIdx.x) % kWarp),
          warp(static_cast<int>(threadIdx.x) / kWarp),
          g(id / 4),
          t(id % 4) {}
    /// Row and chunk of the 16x16 block whose address this lane gives to ldmatrix4, where matrices
    /// 0 ... 3 are (rows 0-7, chunk 0), (rows 8-15, chunk 0), (0-7, 1), (8-15, 1).
    __device__ int row_first_row() const { return (id & 7) + (id & 8); }
    __device__ int row_first_chunk() const { return id >> 4; }
    /// The same with matrices (0-7, 0), (0-7, 1), (8-15, 0), (8-15, 1).
    __device__ int chunk_first_row() const { return (id & 7) + ((id & 16) >> 1); }
    __device__ int chunk_first_chunk() const { return (id >> 3) & 1; }
};

/// The state of a warp's 16 columns of v, transposed: n-tile x holds S^T[e][c] for e = g (elements
/// 0, 1) and g + 8 (elements 2, 3), c = 8 x + 2 t, + 1. Two neighbouring n-tiles, rounded, are an A
/// operand of 16 e by 16 c: the state is multiplied from where it is accumulated.
template <int kDim>
struct State {
    float s[kDim / 8][4];

    __device__ void zero() {
#pragma unroll
        for (int x = 0; x < kDim / 8; ++x)
#pragma unroll
            for (int y = 0; y < 4; ++y) s[x][y] = 0.0F;
    }
    /// state: [kDim (c), kDim (e)] at the warp's first column.
    __device__ void load(const float* state, const Lane& l) {
        const float* const from = state + 2 * l.t * kDim + l.g;
#pragma unroll
        for (int x = 0; x < kDim / 8; ++x)
#pragma unroll
            for (int y = 0; y < 4; ++y) s[x][y] = from[(8 * x + y % 2) * kDim + (y / 2) * 8];
    }
    __device__ void store(float* state, const Lane& l) const {
        float* const to = state + 2 * l.t * kDim + l.g;
#pragma unroll
        for (int x = 0; x < kDim / 8; ++x)
#pragma unroll
            for (int y = 0; y < 4; ++y) to[(8 * x + y % 2) * kDim + (y / 2) * 8] = s[x][y];
    }
    __device__ void scale(float factor) {
#pragma unroll
        for (int x = 0; x < kDim / 8; ++x)
#pragma unroll
            for (int y = 0; y < 4; ++y) s[x][y] *= factor;
    }
    /// A operand of the dims 16 step ... + 15.
    __device__ void operand(int step, std::uint32_t (&a)[4]) const {
        a[0] = pack_bf16(s[2 * step][0], s[2 * step][1]);
        a[1] = pack_bf16(s[2 * step][2], s[2 * step][3]);
        a[2] = pack_bf16(s[2 * step + 1][0], s[2 * step + 1][1]);
        a[3] = pack_bf16(s[2 * step + 1][2], s[2 * step + 1][3]);
    }
};

/// v^T of the warp's columns as A operands: v[step] is 16 e by the rows j = 16 step ... + 15.
struct Values {
    std::uint32_t v[kTile / 16][4];

    __device__ void load(std::uint32_t tile_values, const Lane& l) {
        const std::uint32_t at =
            tile_values +
            chunk_offset<kSlice / 8>(l.chunk_first_row(), 2 * l.warp + l.chunk_first_chunk());
#pragma unroll
        for (int step = 0; step < kTile / 16; ++step)
            ldmatrix4_transposed(v[step], at + step * 16 * kSlice * 2);
    }
    /// Operand `step` with row j times weights[j].
    __device__ void weighted(int step, const float* weights, const Lane& l,
                             std::uint32_t (&a)[4]) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // a[0], a[1]: j = 2 t, + 1; a[2], a[3]: + 8
            const float* w = weights + 16 * step + 8 * half + 2 * l.t;
            const float w0 = w[0];
            const float w1 = w[1];
#pragma unroll
            for (int y = 2 * half; y < 2 * half + 2; ++y) {
                const std::uint32_t pair = v[step][y];  // a bf16 is the upper half of a float
                a[y] = pack_bf16(__uint_as_float(pair << 16) * w0,
                                 __uint_as_float(pair & 0xFFFF0000U) * w1);
            }
        }
    }
    /// All operands with row j times weights[j].
    __device__ void weigh(const float* weights, const Lane& l,
                          std::uint32_t (&a)[kTile / 16][4]) const {
#pragma unroll
        for (int step = 0; step < kTile / 16; ++step) weighted(step, weights, l, a[step]);
    }
};

/// Things to do between the matrix instructions of add_rows.
constexpr int kPieces = 16;

/// S^T += (weighted v)^T k over the rows 16 kFirst ... 16 kLast - 1 of the tile. Calls
/// piece(0) ... piece(kPieces - 1) on the way, spread evenly.
template <int kDim, int kFirst, int kLast, typename Piece>
__device__ inline void add_rows(State<kDim>& state, const Values& values, const float* weights,
                                std::uint32_t tile_keys, const Lane& l, const Piece& piece) {
    using L = Layout<kDim>;
    constexpr int kDims = kDim / 16;
    constexpr int kSlots = (kLast - kFirst) * kDims;
    constexpr int kAhead = kSlots < 3 ? kSlots : 3;  // loads in flight
    static_assert(kPieces % kSlots == 0 || kSlots % kPieces == 0);
    const std::uint32_t at =
        tile_keys + chunk_offset<L::kChunks>(l.row_first_row(), l.row_first_chunk());
    std::uint32_t a[kLast - kFirst][4];
#pragma unroll
    for (int step = kFirst; step < kLast; ++step)
        values.weighted(step, weights, l, a[step - kFirst]);
    std::uint32_t b[4][4];  // B: k = rows j, n = dims c; slot modulo 4
    const auto load = [&](int slot) {
        ldmatrix4_transposed(b[slot % 4],
                             L::dims(at, slot % kDims) + (kFirst + slot / kDims) * 16 * L::kPitch);
    };
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) load(slot);
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
        if (slot + kAhead < kSlots) load(slot + kAhead);
        const int c = slot % kDims;
        mma_bf16(state.s[2 * c], a[slot / kDims], b[slot % 4][0], b[slot % 4][1]);
        mma_bf16(state.s[2 * c + 1], a[slot / kDims], b[slot % 4][2], b[slot % 4][3]);
        if constexpr (kPieces >= kSlots) {
            constexpr int kEach = kPieces / kSlots;
#pragma unroll
            for (int i = 0; i < kEach; ++i) piece(slot * kEach + i);
        } else {
            constexpr int kEvery = kSlots / kPieces;
            if (slot % kEvery == 0) piece(slot / kEvery);
        }
    }
}

/// Row blocks of eight in C fragments with n = rows i of the tile.
using Fragments = float[kTile / 8][4];

/// out^T[e][i] = S^T q^T of the warp's 16 columns e, and scores^T[j][i] = k q^T of the warp's 16
/// rows j: one pass over q, which is the B operand of both. Scores above the diagonal are computed
/// too: the first warp needs all of its own, and the others would only wait for it. between(step)
/// is called once for each 16 dims; what it issues fills the gaps between matrix instructions.
template <int kDim, typename Between>
__device__ inline void multiply_queries(const State<kDim>& state, std::uint32_t tile, const Lane& l,
                                        Fragments& out, Fragments& scores, const Between& between) {
    using L = Layout<kDim>;
    constexpr int kBlocks = kTile / 16;
    const std::uint32_t queries =
        tile + chunk_offset<L::kChunks>(l.chunk_first_row(), l.chunk_first_chunk());
    const std::uint32_t keys =
        tile + L::kKeys +
        chunk_offset<L::kChunks>(16 * l.warp + l.row_first_row(), l.row_first_chunk());
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int y = 0; y < 4; ++y) out[n][y] = scores[n][y] = 0.0F;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
        std::uint32_t s[4], k[4], q[kBlocks][4];
        ldmatrix4(k, L::dims(keys, step));
#pragma unroll
        for (int i = 0; i < kBlocks; ++i)  // B: k = dims c, n = rows i
            ldmatrix4(q[i], L::dims(queries, step) + i * 16 * L::kPitch);
        state.operand(step, s);
        between(step);
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
            mma_bf16(scores[2 * i], k, q[i][0], q[i][1]);
            mma_bf16(scores[2 * i + 1], k, q[i][2], q[i][3]);
            mma_bf16(out[2 * i], s, q[i][0], q[i][1]);
            mma_bf16(out[2 * i + 1], s, q[i][2], q[i][3]);
        }
    }
}

/// Decays between a key and a query, from those between blocks of eight rows and within one.
struct ScoreDecays {
    float near[2];  // i - j = 2 t + y - g, 0 where negative: same block
    float far[2];   // i - j = 8 + 2 t + y - g: the next block
    float block;    // one block more

    __device__ ScoreDecays(float slope, const Lane& l) : block(expf(-slope * 8.0F)) {
#pragma unroll
        for (int y = 0; y < 2; ++y) {
            const int distance = 2 * l.t + y - l.g;
            near[y] = distance >= 0 ? expf(-slope * static_cast<float>(distance)) : 0.0F;
            far[y] = expf(-slope * static_cast<float>(8 + distance));
        }
    }
};

/// Masks and weighs the scores of a warp and leaves them as bf16 [j][i] (8 chunks a row), with
/// zeros where j > i. Pieces 2 n and 2 n + 1, in this order, are those of the rows i = 8 n ... + 7.
struct ScoreWriter {
    const Fragments& scores;
    const ScoreDecays& d;
    char* to;  // the lane's place in row 16 warp + g
    int first_block;
    float block = 0.0F, block_before = 0.0F;  // decay from the block after j's to that of i

    __device__ ScoreWriter(const Fragments& scores_, const ScoreDecays& d_, char* to_,
                           const Lane& l)
        : scores(scores_),
          d(d_),
          to(to_ + (16 * l.warp + l.g) * 128 + 4 * l.t),
          first_block(2 * l.warp) {}
    __device__ void write(int piece, const Lane& l) {
        const int n = piece / 2;
        const int half = piece % 2;                // j = 16 warp + 8 half + g
        const int apart = n - first_block - half;  // blocks of eight between i and j
        if (half == 0) {
            block_before = block;
            block = apart < 1 ? 0.0F : apart == 1 ? 1.0F : block_before * d.block;
        }
        const float from_next = half == 0 ? block : block_before;
        const float w0 = apart == 0 ? d.near[0] : from_next * d.far[0];
        const float w1 = apart == 0 ? d.near[1] : from_next * d.far[1];
        *reinterpret_cast<std::uint32_t*>(to + half * 8 * 128 + ((n ^ l.g) * 16)) =
            pack_bf16(scores[n][2 * half] * w0, scores[n][2 * half + 1] * w1);
    }
};

/// out^T[e][i] *= from_start[i]: the decay of the incoming state.
__device__ inline void scale_outputs(Fragments& out, const float* from_start, const Lane& l) {
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
        const float2 w = *reinterpret_cast<const float2*>(from_start + 8 * n + 2 * l.t);
        out[n][0] *= w.x;
        out[n][1] *= w.y;
        out[n][2] *= w.x;
        out[n][3] *= w.y;
    }
}

/// out^T[e][i] += sum over j <= i of v^T[e][j] scores^T[j][i].
__device__ inline void add_scores(Fragments& out, const Values& values, std::uint32_t scores,
                                  const Lane& l) {
    const std::uint32_t at = scores + chunk_offset<8>(l.row_first_row(), l.row_first_chunk());
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step)  // B: k = rows j, n = rows i
#pragma unroll
        for (int i = step; i < kTile / 16; ++i) {
            std::uint32_t b[4];
            ldmatrix4_transposed(b, (at ^ (32 * i)) + step * 16 * 128);
            mma_bf16(out[2 * i], values.v[step], b[0], b[1]);
            mma_bf16(out[2 * i + 1], values.v[step], b[2], b[3]);
        }
}

/// Leaves out^T of the warp's columns as bf16 [i][e] (8 chunks a row); piece 2 n + half is the rows
/// i = 8 n ... + 7 and the columns e = 16 warp + 8 half ... + 7.
__device__ inline void stage_outputs(const Fragments& out, int piece, char* to, const Lane& l) {
    const int n = piece / 2;
    const int half = piece % 2;
    const std::uint32_t at = chunk_offset<8>(l.g, 2 * l.warp) + 4 * l.t;
    const std::uint32_t turned = transpose8x8(pack_bf16(out[n][2 * half], out[n][2 * half + 1]));
    *reinterpret_cast<std::uint32_t*>(to + ((at ^ (half * 16)) + n * 8 * 128)) = turned;
}

// ---- the products with wgmma; the caller fences and commits

/// scores^T = k q^T
template <int kDim>
__device__ inline void wgmma_scores(Fragments& scores, std::uint32_t tile) {
    using L = Layout<kDim>;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step)
        wgmma_bf16(scores, wgmma_operand(L::dims(tile + L::kKeys, step)),
                   wgmma_operand(L::dims(tile, step)), step > 0);
}
/// out^T = S^T q^T, S^T rounded
template <int kDim>
__device__ inline void wgmma_queries(Fragments& out, const std::uint32_t (&state)[kDim / 16][4],
                                     std::uint32_t tile) {
    using L = Layout<kDim>;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step)
        wgmma_bf16<false>(out, state[step], wgmma_operand(L::dims(tile, step)), step > 0);
}
/// out^T += v^T scores^T
__device__ inline void wgmma_add_scores(Fragments& out, const Values& values,
                                        std::uint32_t scores) {
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step)
        wgmma_bf16<true>(out, values.v[step], wgmma_operand(scores + step * 16 * 128), true);
}
/// S^T += (weighted v)^T k
template <int kDim>
__device__ inline void wgmma_add_rows(State<kDim>& state,
                                      const std::uint32_t (&weighted)[kTile / 16][4],
                                      std::uint32_t tile) {
    using L = Layout<kDim>;
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step)
        wgmma_bf16<true>(state.s, weighted[step],
                         wgmma_operand(tile + L::kKeys + step * 16 * L::kPitch, L::kPanel), true);
}

}  // namespace longview::kernels::cuda::lightning

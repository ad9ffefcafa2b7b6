// Register blocks, packed panels and the online softmax that lightning.cpp, softmax_attention.cpp
// and vit.cpp share. Compiled once per instruction set (Highway); no include guard in the usual
// sense for that reason.
//
// Every product here is a chain of multiply-adds along the inner index in ascending order, one
// chain an output element. So an element's bits depend neither on the register block it fell
// into nor on the rows beside it; that is what makes results independent of splits and threads.

#if defined(LONGVIEW_KERNELS_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGVIEW_KERNELS_CPU_ATTENTION_INL_H_
#undef LONGVIEW_KERNELS_CPU_ATTENTION_INL_H_
#else
#define LONGVIEW_KERNELS_CPU_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>

#include "hwy/highway.h"
#include "kernels/runtime/tensor.h"

// Accumulators stay in registers only when the loops over them are unrolled, also at -O2.
#ifndef LONGVIEW_UNROLL
#if defined(__clang__)
#define LONGVIEW_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LONGVIEW_UNROLL _Pragma("GCC unroll 8")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using FloatVec = hn::Vec<Floats>;

// Six rows by two vectors fill twelve of the sixteen registers of AVX2, leaving room for two
// loads and a broadcast.
constexpr int kGroupRows = 6;
// Keys, or positions of a lightning tile, that are packed at a time: with 128 dims, 32 KB.
constexpr int kBlock = 64;
// Rows a panel of a block has room for. One more than used keeps panels from being 4 KB apart,
// where the lines of a row would all want the same place in the first-level cache.
constexpr int kPanelRows = kBlock + 1;

/// Columns of a packed panel: two vectors.
HWY_INLINE int panel_width() {
    return 2 * static_cast<int>(hn::Lanes(Floats()));
}

/// cols rounded up to whole panels.
HWY_INLINE int padded(int cols) {
    const int width = panel_width();
    return (cols + width - 1) / width * width;
}

// ---- Products ----------------------------------------------------------------------------------

/// kRows rows of one panel, in registers.
template <int kRows>
struct RegisterBlock {
    FloatVec lo[kRows];
    FloatVec hi[kRows];

    HWY_INLINE void zero() {
        LONGVIEW_UNROLL
        for (int r = 0; r < kRows; ++r) lo[r] = hi[r] = hn::Zero(Floats());
    }
    HWY_INLINE void load(const float* HWY_RESTRICT from, std::ptrdiff_t stride) {
        const Floats tag;
        LONGVIEW_UNROLL
        for (int r = 0; r < kRows; ++r) {
            lo[r] = hn::LoadU(tag, from + r * stride);
            hi[r] = hn::LoadU(tag, from + r * stride + hn::Lanes(tag));
        }
    }
    HWY_INLINE void store(float* HWY_RESTRICT to, std::ptrdiff_t stride) const {
        const Floats tag;
        LONGVIEW_UNROLL
        for (int r = 0; r < kRows; ++r) {
            hn::StoreU(lo[r], tag, to + r * stride);
            hn::StoreU(hi[r], tag, to + r * stride + hn::Lanes(tag));
        }
    }
    /// Row r times factors[r].
    HWY_INLINE void scale(const float* HWY_RESTRICT factors) {
        LONGVIEW_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const FloatVec factor = hn::Set(Floats(), factors[r]);
            lo[r] = hn::Mul(lo[r], factor);
            hi[r] = hn::Mul(hi[r], factor);
        }
    }
    /// += A B for k = 0 ... depth - 1, where A(r, k) = a[r * row_stride + k * step] and B is a
    /// panel of depth rows.
    HWY_INLINE void multiply_add(const float* HWY_RESTRICT a, std::ptrdiff_t row_stride,
                                 std::ptrdiff_t step, const float* HWY_RESTRICT panel, int depth) {
        const Floats tag;
        const std::size_t lanes = hn::Lanes(tag);
        for (int k = 0; k < depth; ++k) {
            const FloatVec b_lo = hn::Load(tag, panel);
            const FloatVec b_hi = hn::Load(tag, panel + lanes);
            LONGVIEW_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const FloatVec x = hn::Set(tag, a[r * row_stride]);
                lo[r] = hn::MulAdd(x, b_lo, lo[r]);
                hi[r] = hn::MulAdd(x, b_hi, hi[r]);
            }
            a += step;
            panel += 2 * lanes;
        }
    }
};

/// Calls op.rows<n>(first) for groups of n <= kGroupRows rows that cover [begin, end). The last
/// two share what is left evenly: a group of one or two rows waits on its own chains.
template <class Op>
HWY_INLINE void for_row_groups(int begin, int end, const Op& op) {
    for (int row = begin; row < end;) {
        const int left = end - row;
        const int count = left <= kGroupRows || left >= 2 * kGroupRows ? std::min(left, kGroupRows)
                                                                       : (left + 1) / 2;
        switch (count) {
            case 6:
                op.template rows<6>(row);
                break;
            case 5:
                op.template rows<5>(row);
                break;
            case 4:
                op.template rows<4>(row);
                break;
            case 3:
                op.template rows<3>(row);
                break;
            case 2:
                op.template rows<2>(row);
                break;
            default:
                op.template rows<1>(row);
                break;
        }
        row += count;
    }
}

// ---- Packing -----------------------------------------------------------------------------------

/// Panels of the rows themselves: out [panels][capacity][panel_width], columns past cols are 0.
/// Only the first count rows of each panel are written.
HWY_INLINE void pack_rows(const float* const* rows, int count, int cols, int capacity,
                          float* HWY_RESTRICT out) {
    const Floats tag;
    const int lanes = static_cast<int>(hn::Lanes(tag));
    const int width = panel_width();
    for (int row = 0; row < count; ++row) {
        const float* HWY_RESTRICT from = rows[row];
        float* HWY_RESTRICT to = out + static_cast<std::ptrdiff_t>(row) * width;
        int col = 0;
        for (; col + width <= cols; col += width) {
            hn::Store(hn::LoadU(tag, from + col), tag, to);
            hn::Store(hn::LoadU(tag, from + col + lanes), tag, to + lanes);
            to += static_cast<std::ptrdiff_t>(capacity) * width;
        }
        if (col == cols) continue;
        for (int i = 0; i < width; ++i) to[i] = col + i < cols ? from[col + i] : 0.0F;
    }
}

#if HWY_TARGET == HWY_SCALAR
constexpr int kTransposeRows = 1;

HWY_INLINE void transpose_columns(const float* const* rows, int col, float* HWY_RESTRICT out,
                                  std::ptrdiff_t stride) {
    for (int i = 0; i < 4; ++i) out[i * stride] = rows[0][col + i];
}
#else
constexpr int kTransposeRows = 4;

/// kTransposeRows rows of four columns, transposed into out rows `stride` apart.
HWY_INLINE void transpose_columns(const float* const* rows, int col, float* HWY_RESTRICT out,
                                  std::ptrdiff_t stride) {
    const hn::Full128<float> f;
    const hn::Repartition<double, decltype(f)> pairs;
    const auto r0 = hn::LoadU(f, rows[0] + col);
    const auto r1 = hn::LoadU(f, rows[1] + col);
    const auto r2 = hn::LoadU(f, rows[2] + col);
    const auto r3 = hn::LoadU(f, rows[3] + col);
    const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(f, r0, r1));
    const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(f, r2, r3));
    const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(f, r0, r1));
    const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(f, r2, r3));
    hn::Store(hn::BitCast(f, hn::InterleaveLower(pairs, low01, low23)), f, out);
    hn::Store(hn::BitCast(f, hn::InterleaveUpper(pairs, low01, low23)), f, out + stride);
    hn::Store(hn::BitCast(f, hn::InterleaveLower(pairs, high01, high23)), f, out + 2 * stride);
    hn::Store(hn::BitCast(f, hn::InterleaveUpper(pairs, high01, high23)), f, out + 3 * stride);
}
#endif

/// Panels of the transpose: out [panels][cols][panel_width], a panel holding panel_width rows;
/// rows past count are 0.
HWY_INLINE void pack_transposed(const float* const* rows, int count, int cols,
                                float* HWY_RESTRICT out) {
    const int width = panel_width();
    const int padded_count = padded(count);
    for (int row = 0; row < padded_count; row += kTransposeRows) {
        float* HWY_RESTRICT to =
            out + static_cast<std::ptrdiff_t>(row / width) * cols * width + row % width;
        int col = 0;
        if (row + kTransposeRows <= count)
            for (; col + 4 <= cols; col += 4)
                transpose_columns(rows + row, col, to + static_cast<std::ptrdiff_t>(col) * width,
                                  width);
        for (; col < cols; ++col)
            for (int i = 0; i < kTransposeRows; ++i)
                to[static_cast<std::ptrdiff_t>(col) * width + i] =
                    row + i < count ? rows[row + i][col] : 0.0F;
    }
}

/// Copies the first cols of panel row `row` (panels of `capacity` rows) to a plain row.
HWY_INLINE void unpack_row(const float* HWY_RESTRICT panels, int capacity, int row, int cols,
                           float* HWY_RESTRICT out) {
    const int width = panel_width();
    for (int col = 0; col < cols; col += width) {
        const float* HWY_RESTRICT from = panels + (static_cast<std::ptrdiff_t>(col) * capacity +
                                                   static_cast<std::ptrdiff_t>(row) * width);
        std::copy_n(from, std::min(width, cols - col), out + col);
    }
}

/// Rows as floats: those of kF32 are used where they lie, kBF16 are widened into `staging`
/// [count, cols].
HWY_INLINE void float_rows(const void* const* rows, DType dtype, int count, int cols,
                           float* HWY_RESTRICT staging, const float** out) {
    if (dtype == DType::kF32) {
        for (int r = 0; r < count; ++r) out[r] = static_cast<const float*>(rows[r]);
        return;
    }
    const Floats tag;
    const hn::Rebind<hwy::bfloat16_t, Floats> narrow;
    const int lanes = static_cast<int>(hn::Lanes(tag));
    for (int r = 0; r < count; ++r) {
        const auto* from = static_cast<const std::uint16_t*>(rows[r]);
        float* HWY_RESTRICT to = staging + static_cast<std::ptrdiff_t>(r) * cols;
        int col = 0;
        for (; col + lanes <= cols; col += lanes) {
            const auto* bits = reinterpret_cast<const hwy::bfloat16_t*>(from + col);
            hn::StoreU(hn::PromoteTo(tag, hn::LoadU(narrow, bits)), tag, to + col);
        }
        for (; col < cols; ++col)
            to[col] = std::bit_cast<float>(static_cast<std::uint32_t>(from[col]) << 16);
        out[r] = to;
    }
}

// ---- Online softmax ----------------------------------------------------------------------------

/// 2^x for x <= 0 within 1 ulp; exactly 1 at 0, and 0 below 2^-125 and at minus infinity.
/// Minimax polynomial of degree 6 for (2^r - 1) / r on [-1/2, 1/2] (error 2e-9).
HWY_INLINE FloatVec exp2_nonpositive(FloatVec x) {
    const Floats f;
    const hn::RebindToSigned<Floats> i;
    const FloatVec whole = hn::Round(x);
    const FloatVec r = hn::Sub(x, whole);
    FloatVec y = hn::Set(f, 0x1.41fbbcp-13F);
    y = hn::MulAdd(y, r, hn::Set(f, 0x1.5f3e54p-10F));
    y = hn::MulAdd(y, r, hn::Set(f, 0x1.3b2d4cp-7F));
    y = hn::MulAdd(y, r, hn::Set(f, 0x1.c6aee8p-5F));
    y = hn::MulAdd(y, r, hn::Set(f, 0x1.ebfbdcp-3F));
    y = hn::MulAdd(y, r, hn::Set(f, 0x1.62e430p-1F));
    y = hn::MulAdd(y, r, hn::Set(f, 1.0F));
    const auto exponent = hn::ShiftLeft<23>(hn::ConvertTo(i, whole));
    y = hn::BitCast(f, hn::Add(hn::BitCast(i, y), exponent));
    return hn::IfThenZeroElse(hn::Lt(x, hn::Set(f, -125.0F)), y);
}

HWY_INLINE float exp2_nonpositive(float x) {
    return hn::GetLane(exp2_nonpositive(hn::Set(Floats(), x)));
}

/// A tile of query rows on its way through the keys, in one thread's scratch: `heads` rows for
/// each position, positions ascending. With scores s = q k in powers of two, a row holds
/// m = max s, l = sum 2^(s-m), acc = sum 2^(s-m) v.
struct SoftmaxTile {
    int rows = 0;
    int heads = 1;
    int head_dim = 0;
    float* q = nullptr;        // [rows, head_dim], times scale * log2(e)
    float* acc = nullptr;      // panels [.][rows][panel_width]
    float* max = nullptr;      // [rows]
    float* sum = nullptr;      // [rows]
    float* factor = nullptr;   // [rows] 2^(old max - new max) of the block at hand
    float* scores = nullptr;   // [rows, kBlock]
    float* keys = nullptr;     // panels of the transpose [.][head_dim][panel_width]
    float* values = nullptr;   // panels [.][kPanelRows][panel_width]
    float* staging = nullptr;  // [kBlock, head_dim]

    /// Floats of scratch for tiles of up to max_rows.
    static std::size_t scratch_floats(int max_rows, int head_dim) {
        const auto r = static_cast<std::size_t>(max_rows) + 16;  // whole cache lines apart
        const auto d = static_cast<std::size_t>(padded(head_dim)) + 16;
        return 2 * r * d + 3 * r + r * kBlock + 3 * kPanelRows * d + 16 * 16;
    }

    SoftmaxTile(float* scratch, int row_count, int heads_per_position, int dims)
        : rows(row_count), heads(heads_per_position), head_dim(dims) {
        const auto take = [&scratch](std::size_t count) {
            float* const begin = scratch;
            scratch += (count + 15) / 16 * 16;
            return begin;
        };
        const auto r = static_cast<std::size_t>(rows);
        const auto d = static_cast<std::size_t>(head_dim);
        const auto wide = static_cast<std::size_t>(padded(head_dim));
        q = take(r * d);
        acc = take(r * wide);
        max = take(r);
        sum = take(r);
        factor = take(r);
        scores = take(r * kBlock);
        keys = take(kBlock * d);
        values = take(kPanelRows * wide);
        staging = take(kBlock * d);
    }

    /// Before the first key.
    void start() {
        std::fill_n(max, rows, -std::numeric_limits<float>::infinity());
        std::fill_n(sum, rows, 0.0F);
        std::fill_n(
            acc, static_cast<std::size_t>(rows) * static_cast<std::size_t>(padded(head_dim)), 0.0F);
    }
};

struct ScoreGroups {
    const SoftmaxTile& tile;
    const float* panel;
    int first_key;

    template <int kRows>
    HWY_INLINE void rows(int row) const {
        RegisterBlock<kRows> block;
        block.zero();
        block.multiply_add(tile.q + static_cast<std::ptrdiff_t>(row) * tile.head_dim, tile.head_dim,
                           1, panel, tile.head_dim);
        block.store(tile.scores + row * kBlock + first_key, kBlock);
    }
};

struct ValueGroups {
    const SoftmaxTile& tile;
    const float* panel;
    float* acc;  // the same panel of tile.acc
    int count;
    std::int64_t visible;  // keys that the first position sees

    template <int kRows>
    HWY_INLINE void rows(int row) const {
        RegisterBlock<kRows> block;
        const int width = panel_width();
        block.load(acc + row * width, width);
        block.scale(tile.factor + row);
        const std::int64_t seen = visible + (row + kRows - 1) / tile.heads;
        block.multiply_add(tile.scores + row * kBlock, kBlock, 1, panel,
                           static_cast<int>(std::min<std::int64_t>(seen, count)));
        block.store(acc + row * width, width);
    }
};

/// Turns a row's scores into 2^(score - max), 0 from `visible` > 0 on, and updates max, sum and
/// factor.
/// The sum is taken in Lanes() interleaved chains over the whole block, so masked keys (exact
/// zeros) do not change its order.
HWY_INLINE void weigh_row(const SoftmaxTile& tile, int row, int visible) {
    const Floats tag;
    const int lanes = static_cast<int>(hn::Lanes(tag));
    float* HWY_RESTRICT scores = tile.scores + row * kBlock;
    std::fill(scores + visible, scores + kBlock, -std::numeric_limits<float>::infinity());
    FloatVec largest = hn::Load(tag, scores);
    for (int j = lanes; j < kBlock; j += lanes)
        largest = hn::Max(largest, hn::Load(tag, scores + j));
    const float old_max = tile.max[row];
    const float new_max = std::max(old_max, hn::GetLane(hn::MaxOfLanes(tag, largest)));
    const FloatVec reference = hn::Set(tag, new_max);
    FloatVec total = hn::Zero(tag);
    for (int j = 0; j < kBlock; j += lanes) {
        const FloatVec p = exp2_nonpositive(hn::Sub(hn::Load(tag, scores + j), reference));
        hn::Store(p, tag, scores + j);
        total = hn::Add(total, p);
    }
    const float factor = exp2_nonpositive(old_max - new_max);
    tile.factor[row] = factor;
    tile.max[row] = new_max;
    tile.sum[row] = tile.sum[row] * factor + hn::GetLane(hn::SumOfLanes(tag, total));
}

/// Keys and values of up to kBlock positions where they lie.
struct KeyBlock {
    const void* keys[kBlock];
    const void* values[kBlock];
    int count = 0;
};

/// Asks for the part-th of `parts` shares of a block's memory, to arrive while the block before
/// it is worked on.
HWY_INLINE void prefetch(const KeyBlock& block, std::size_t row_bytes, int part, int parts) {
    for (int i = block.count * part / parts; i < block.count * (part + 1) / parts; ++i)
        for (std::size_t at = 0; at < row_bytes; at += 64) {
            __builtin_prefetch(static_cast<const char*>(block.keys[i]) + at, 0, 2);
            __builtin_prefetch(static_cast<const char*>(block.values[i]) + at, 0, 2);
        }
}

/// Takes the tile through a block of keys. The tile's first position sees the first `visible` of
/// them (0 or less: none), each later position one more. `next` is fetched meanwhile.
HWY_INLINE void attend_block(const SoftmaxTile& tile, const KeyBlock& block, DType dtype,
                             std::int64_t visible, const KeyBlock& next) {
    const int width = panel_width();
    const int dims = tile.head_dim;
    const std::size_t row_bytes = static_cast<std::size_t>(dims) * size_of(dtype);
    const int panels = (block.count + width - 1) / width + (dims + width - 1) / width;
    int panel = 0;
    const auto first_row = [&](int key) {  // that sees this key
        return static_cast<int>(
            std::clamp<std::int64_t>((key + 1 - visible) * tile.heads, 0, tile.rows));
    };
    const float* rows[kBlock];
    float_rows(block.keys, dtype, block.count, dims, tile.staging, rows);
    pack_transposed(rows, block.count, dims, tile.keys);
    for (int key = 0; key < block.count; key += width) {
        prefetch(next, row_bytes, panel++, panels);
        for_row_groups(first_row(key), tile.rows,
                       ScoreGroups{tile, tile.keys + static_cast<std::ptrdiff_t>(key) * dims, key});
    }
    for (int row = first_row(0); row < tile.rows; ++row) {
        const std::int64_t seen = visible + row / tile.heads;
        weigh_row(tile, row, static_cast<int>(std::min<std::int64_t>(seen, block.count)));
    }
    float_rows(block.values, dtype, block.count, dims, tile.staging, rows);
    pack_rows(rows, block.count, dims, kPanelRows, tile.values);
    for (int col = 0; col < dims; col += width) {
        prefetch(next, row_bytes, panel++, panels);
        for_row_groups(
            first_row(0), tile.rows,
            ValueGroups{tile, tile.values + static_cast<std::ptrdiff_t>(col) * kPanelRows,
                        tile.acc + static_cast<std::ptrdiff_t>(col) * tile.rows, block.count,
                        visible});
    }
}

/// Takes the tile through `count` keys, block by block; `at(i)` is the pair of pointers to key and
/// value i, `visible` as in attend_block.
template <class At>
HWY_INLINE void attend_keys(const SoftmaxTile& tile, std::int64_t count, DType dtype,
                            std::int64_t visible, const At& at) {
    KeyBlock blocks[2];
    const auto gather = [&](std::int64_t first, KeyBlock& block) {
        block.count = static_cast<int>(std::clamp<std::int64_t>(count - first, 0, kBlock));
        for (int i = 0; i < block.count; ++i)
            std::tie(block.keys[i], block.values[i]) = at(first + i);
    };
    gather(0, blocks[0]);
    for (std::int64_t first = 0, i = 0; first < count; first += kBlock, ++i) {
        gather(first + kBlock, blocks[(i + 1) % 2]);
        attend_block(tile, blocks[i % 2], dtype, visible - first, blocks[(i + 1) % 2]);
    }
}

/// Copies a query row into the tile, ready for powers of two.
HWY_INLINE void set_query(const SoftmaxTile& tile, int row, const float* HWY_RESTRICT q,
                          float scale) {
    constexpr double kLog2E = 1.4426950408889634;
    const auto factor = static_cast<float>(static_cast<double>(scale) * kLog2E);
    float* HWY_RESTRICT to = tile.q + static_cast<std::ptrdiff_t>(row) * tile.head_dim;
    for (int i = 0; i < tile.head_dim; ++i) to[i] = q[i] * factor;
}

}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // include guard per target

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target, as Highway demands.
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd-inl.h"

#ifndef LONGVIEW_KERNELS_CPU_GEMM_ONCE
#define LONGVIEW_KERNELS_CPU_GEMM_ONCE
namespace longview::kernels::cpu {
namespace {

// Inputs worked on at a time when several tiles of rows share the weights: 4 weight rows of this
// many floats (12 KiB) and 3 rows of x (9 KiB) stay in a 32 KiB first-level cache. Measured on
// Zen 3 at 96 rows of 6144 inputs: 512 and 1024 are 2 to 10 % slower.
constexpr std::size_t kInputBlock = 768;
// From this many rows on weights are read in blocks of inputs, and from the next number on they
// are turned into floats once for all rows instead of in every tile (Zen 3: at 24 rows still 5 %
// slower, at 96 rows 4 % faster).
constexpr std::size_t kBlockFromRows = 7;
constexpr std::size_t kConvertFromRows = 32;
constexpr std::size_t kMaxLanes = 16;
constexpr std::size_t kOutputs = 4;  // of a tile; they fill a 128-bit register of results

}  // namespace
}  // namespace longview::kernels::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

// A tile keeps kTileRows * 4 sums, kTileRows values of x and one weight vector in registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr std::size_t kTileRows = 6;  // 32 registers
#else
constexpr std::size_t kTileRows = 3;  // 16 registers
#endif
constexpr std::size_t kVectorOutputs = 8;  // weight rows in flight for a single row of x

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void lane_sums(V a, V b, V c, V d, float* to) {
    to[0] = hn::GetLane(a);
    to[1] = hn::GetLane(b);
    to[2] = hn::GetLane(c);
    to[3] = hn::GetLane(d);
}
#else
using D4 = hn::FixedTag<float, 4>;
using V4 = hn::Vec<D4>;

template <class T>
HWY_INLINE V4 fold(T v) {
    constexpr std::size_t kCount = sizeof(v) / sizeof(float);
    if constexpr (kCount > 4) {
        const hn::FixedTag<float, kCount / 2> half;
        return fold(hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
    } else {
        return v;
    }
}

// The sums of the lanes of four vectors: lanes l and l + n/2 until four are left, then
// (l0 + l2) + (l1 + l3).
HWY_INLINE void lane_sums(V a, V b, V c, V d, float* to) {
    const D4 d4;
    const V4 a4 = fold(a), b4 = fold(b), c4 = fold(c), e4 = fold(d);
    const V4 ab = hn::Add(hn::InterleaveLower(d4, a4, b4), hn::InterleaveUpper(d4, a4, b4));
    const V4 cd = hn::Add(hn::InterleaveLower(d4, c4, e4), hn::InterleaveUpper(d4, c4, e4));
    hn::StoreU(hn::Add(hn::ConcatLowerLower(d4, cd, ab), hn::ConcatUpperUpper(d4, cd, ab)), d4, to);
}
#endif

// kRows rows of x by kCols weight rows. Indices are expanded by the compiler's front end, so that
// every sum is a register whatever the optimiser thinks of loops.
template <std::size_t kRows, std::size_t kCols, class T>
class Tile {
  public:
    using Rows = std::make_index_sequence<kRows>;
    using Cols = std::make_index_sequence<kCols>;
    using Sums = std::make_index_sequence<kRows * kCols>;

    HWY_INLINE void clear() { clear(Sums()); }
    HWY_INLINE void read(const float* from) { read(from, Sums()); }
    HWY_INLINE void write(float* to) const { write(to, Sums()); }

    /// Adds the terms of `inputs` values.
    HWY_INLINE void add(const float* const* x, const T* const* w, std::size_t inputs) {
        std::size_t k = 0;
        for (; k + kLanes <= inputs; k += kLanes)
            add_vectors<false>(x, w, k, kLanes, Rows(), Cols());
        if (HWY_UNLIKELY(k < inputs)) add_vectors<true>(x, w, k, inputs - k, Rows(), Cols());
    }

    /// The finished products, to `valid` columns of each row.
    HWY_INLINE void finish(float* out, std::int64_t stride, std::size_t valid) const {
        finish(out, stride, valid, std::make_index_sequence<kRows * kCols / 4>());
    }

  private:
    template <std::size_t... kS>
    HWY_INLINE void clear(std::index_sequence<kS...>) {
        ((sums_[kS] = hn::Zero(D())), ...);
    }
    template <std::size_t... kS>
    HWY_INLINE void read(const float* from, std::index_sequence<kS...>) {
        ((sums_[kS] = hn::Load(D(), from + kS * kLanes)), ...);
    }
    template <std::size_t... kS>
    HWY_INLINE void write(float* to, std::index_sequence<kS...>) const {
        (hn::Store(sums_[kS], D(), to + kS * kLanes), ...);
    }
    template <std::size_t... kGroup>
    HWY_INLINE void finish(float* out, std::int64_t stride, std::size_t valid,
                           std::index_sequence<kGroup...>) const {
        (finish_four(sums_ + 4 * kGroup,
                     out + static_cast<std::int64_t>(4 * kGroup / kCols) * stride,
                     4 * kGroup % kCols, valid),
         ...);
    }
    static HWY_INLINE void finish_four(const V* sums, float* row, std::size_t col,
                                       std::size_t valid) {
        if (HWY_LIKELY(col + 4 <= valid)) {
            lane_sums(sums[0], sums[1], sums[2], sums[3], row + col);
        } else if (col < valid) {
            float part[4];
            lane_sums(sums[0], sums[1], sums[2], sums[3], part);
            std::memcpy(row + col, part, (valid - col) * sizeof(float));
        }
    }
    template <bool kPart, class U>
    static HWY_INLINE V load_some(const U* p, std::size_t count) {
        if constexpr (kPart) return load_part(p, count);
        return load(p);
    }
    template <std::size_t kCol, std::size_t... kRow>
    HWY_INLINE void add_column(const V* xs, V w, std::index_sequence<kRow...>) {
        ((sums_[kRow * kCols + kCol] = hn::MulAdd(xs[kRow], w, sums_[kRow * kCols + kCol])), ...);
    }
    template <bool kPart, std::size_t... kRow, std::size_t... kCol>
    HWY_INLINE void add_vectors(const float* const* x, const T* const* w, std::size_t k,
                                std::size_t count, std::index_sequence<kRow...>,
                                std::index_sequence<kCol...>) {
        const V xs[kRows] = {load_some<kPart>(x[kRow] + k, count)...};
        (add_column<kCol>(xs, load_some<kPart>(w[kCol] + k, count), Rows()), ...);
    }

    V sums_[kRows * kCols];
};

/// One block of inputs of a tile: sums come from and go to `carry` between blocks.
struct Step {
    std::size_t inputs;
    float* carry;
    bool first;
    bool last;
    float* out;
    std::int64_t stride;
    std::size_t valid;  // columns to write
};

template <std::size_t kRows, std::size_t kCols, class T>
HWY_INLINE void run_tile(const float* const* x, const T* const* w, const Step& step) {
    const float* rows[kRows];
    for (std::size_t r = 0; r < kRows; ++r) rows[r] = x[r];
    const T* cols[kCols];
    for (std::size_t c = 0; c < kCols; ++c) cols[c] = w[c];
    Tile<kRows, kCols, T> tile;
    if (step.first) {
        tile.clear();
    } else {
        tile.read(step.carry);
    }
    tile.add(rows, cols, step.inputs);
    if (step.last) {
        tile.finish(step.out, step.stride, step.valid);
    } else {
        tile.write(step.carry);
    }
}

template <std::size_t kRows, class T>
HWY_NOINLINE void tile_of(const float* const* x, const T* const* w, const Step& step) {
    run_tile<kRows, kOutputs>(x, w, step);
}

/// Up to kTileRows rows by four weight rows.
template <class T>
HWY_INLINE void tile_rows(std::size_t rows, const float* const* x, const T* const* w,
                          const Step& step) {
    switch (rows) {
        case 1:
            return tile_of<1>(x, w, step);
        case 2:
            return tile_of<2>(x, w, step);
        case 3:
            return tile_of<3>(x, w, step);
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
        case 4:
            return tile_of<4>(x, w, step);
        case 5:
            return tile_of<5>(x, w, step);
        default:
            return tile_of<6>(x, w, step);
#else
        default:
            return;
#endif
    }
}

/// A block of results: the arguments of dot_products with the weights' type known.
template <class T>
struct Block {
    const float* const* x;
    std::size_t rows;
    const T* w;  // the first weight row
    std::size_t inputs;
    std::size_t count;
    float* out;
    std::int64_t stride;
    float* scratch;

    /// Weight rows from output i on; past the end the last one again (its results are dropped).
    template <std::size_t kCount>
    HWY_INLINE void columns(std::size_t i, std::size_t k, const T** to) const {
        for (std::size_t c = 0; c < kCount; ++c) to[c] = w + HWY_MIN(i + c, count - 1) * inputs + k;
    }
};

template <class T>
void one_row(const Block<T>& b) {
    for (std::size_t i = 0; i < b.count; i += kVectorOutputs) {
        const T* cols[kVectorOutputs];
        b.template columns<kVectorOutputs>(i, 0, cols);
        const Step step = {b.inputs, nullptr, true, true, b.out + i, b.stride, b.count - i};
        run_tile<1, kVectorOutputs>(b.x, cols, step);
    }
}

/// How many of the `left` rows the next tile takes; what is left of two tiles is halved, because a
/// tile of a row or two waits for its own sums.
HWY_INLINE std::size_t next_rows(std::size_t left) {
    return left > kTileRows && left < 2 * kTileRows ? (left + 1) / 2 : HWY_MIN(left, kTileRows);
}

template <class T>
void few_rows(const Block<T>& b) {
    for (std::size_t i = 0; i < b.count; i += kOutputs) {
        const T* cols[kOutputs];
        b.template columns<kOutputs>(i, 0, cols);
        for (std::size_t r = 0, rows = 0; r < b.rows; r += rows) {
            rows = next_rows(b.rows - r);
            float* const out = b.out + static_cast<std::int64_t>(r) * b.stride + i;
            tile_rows(rows, b.x + r, cols,
                      {b.inputs, nullptr, true, true, out, b.stride, b.count - i});
        }
    }
}

/// Weight rows as they are, or as floats in `panel`.
template <class T>
HWY_INLINE const T* const* prepared(std::false_type, const T* const* from, std::size_t, float*,
                                    const float**) {
    return from;
}
template <class T>
HWY_INLINE const float* const* prepared(std::true_type, const T* const* from, std::size_t n,
                                        float* panel, const float** to) {
    for (std::size_t c = 0; c < kOutputs; ++c) {
        float* const row = panel + c * kInputBlock;
        for (std::size_t k = 0; k < n; k += kLanes)
            store_part(load_part(from[c] + k, n - k), row + k, n - k);
        to[c] = row;
    }
    return to;
}

/// Four weight rows at a time meet all rows; long rows are cut into blocks of inputs, with the
/// sums of all tiles kept in between.
template <class Convert, class T>
void many_rows(const Block<T>& b) {
    float* const panel = b.scratch;
    float* const carry = panel + kOutputs * kInputBlock;
    constexpr std::size_t kTileFloats = kTileRows * kOutputs * kLanes;
    const float* x[Blocking::kMaxRows];
    for (std::size_t k = 0; k < b.inputs; k += kInputBlock) {
        const std::size_t inputs = HWY_MIN(b.inputs - k, kInputBlock);
        for (std::size_t r = 0; r < b.rows; ++r) x[r] = b.x[r] + k;
        float* sums = carry;
        for (std::size_t i = 0; i < b.count; i += kOutputs) {
            const T* stored[kOutputs];
            b.template columns<kOutputs>(i, k, stored);
            const float* floats[kOutputs];
            const auto cols = prepared(Convert(), stored, inputs, panel, floats);
            for (std::size_t r = 0, rows = 0; r < b.rows; r += rows, sums += kTileFloats) {
                rows = next_rows(b.rows - r);
                float* const out = b.out + static_cast<std::int64_t>(r) * b.stride + i;
                tile_rows(
                    rows, x + r, cols,
                    {inputs, sums, k == 0, k + inputs == b.inputs, out, b.stride, b.count - i});
            }
        }
    }
}

template <class T>
void block(const Block<T>& b) {
    if (b.inputs == 0) {
        for (std::size_t r = 0; r < b.rows; ++r)
            std::memset(b.out + static_cast<std::int64_t>(r) * b.stride, 0,
                        b.count * sizeof(float));
    } else if (b.rows == 1) {
        one_row(b);
    } else if (b.rows < kBlockFromRows) {
        few_rows(b);
    } else if (b.rows < kConvertFromRows || std::is_same_v<T, float>) {
        many_rows<std::false_type>(b);
    } else {
        many_rows<std::true_type>(b);
    }
}

template <class T>
void typed(const float* const* x, std::int64_t rows, const WeightView& w, std::int64_t first,
           std::int64_t count, float* out, std::int64_t stride, float* scratch) {
    block<T>({x, static_cast<std::size_t>(rows), reinterpret_cast<const T*>(w.row(first)),
              static_cast<std::size_t>(w.cols), static_cast<std::size_t>(count), out, stride,
              scratch});
}

void products(const float* const* x, std::int64_t rows, const WeightView& w, std::int64_t first,
              std::int64_t count, float* out, std::int64_t stride, float* scratch) {
    switch (w.dtype) {
        case DType::kF32:
            return typed<float>(x, rows, w, first, count, out, stride, scratch);
        case DType::kF16:
            return typed<hwy::float16_t>(x, rows, w, first, count, out, stride, scratch);
        case DType::kBF16:
            return typed<hwy::bfloat16_t>(x, rows, w, first, count, out, stride, scratch);
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longview::kernels::cpu {
namespace {
HWY_EXPORT(products);

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
}  // namespace

Blocking Blocking::of(std::int64_t rows, std::int64_t inputs) {
    // 32 Ki multiplications are 1-3 us, enough to hide taking the piece. Many rows take
    // kMaxOutputs at once, which repays fetching the rows and stays below 20 ms for any width.
    constexpr std::int64_t kWork = 32768;
    Blocking b;
    if (rows <= 0) return b;
    b.row_blocks = divide_up(rows, kMaxRows);
    // Equal blocks, in whole tiles of any instruction set.
    b.rows = std::min(rows, divide_up(divide_up(rows, b.row_blocks), 6) * 6);
    b.row_blocks = divide_up(rows, b.rows);
    const std::int64_t fitting = kWork / (b.rows * std::max<std::int64_t>(inputs, 1)) / 8 * 8;
    b.outputs = b.rows < 16 ? std::clamp<std::int64_t>(fitting, 8, 1024) : kMaxOutputs;
    if (b.blocked()) b.outputs = std::min(b.outputs, kMaxOutputs);
    return b;
}

bool Blocking::blocked() const {
    return rows >= static_cast<std::int64_t>(kBlockFromRows);
}

std::size_t Blocking::scratch_floats() const {
    if (!blocked()) return 0;
    constexpr std::size_t kWidestTile = 6 * kOutputs * kMaxLanes;
    const std::int64_t tiles = divide_up(rows, 6) * divide_up(outputs, kOutputs);
    return kOutputs * kInputBlock + static_cast<std::size_t>(tiles) * kWidestTile;
}

void dot_products(const float* const* x, std::int64_t rows, const WeightView& w, std::int64_t first,
                  std::int64_t count, float* out, std::int64_t stride, float* scratch) {
    if (rows <= 0 || count <= 0) return;
    HWY_DYNAMIC_DISPATCH(products)(x, rows, w, first, count, out, stride, scratch);
}

}  // namespace longview::kernels::cpu
#endif  // HWY_ONCE

// Lightning attention with the state going in and out (model-spec 3.4, 3.5; Qin et al. 2024,
// arXiv:2401.04658).
//
// Rows are cut into pieces at absolute multiples of kLightningTile. A piece of m rows is computed
// by one of two forms, chosen by m alone, so calls split at multiples of the tile agree bit for
// bit; other splits agree up to rounding.
//
// With s the head's slope, w(t) = float(exp(-s t)) from a double, t >= 0 only (exp(+s t)
// overflows), local rows i, j = 0 ... m-1, c a dim of q and k, e a dim of v, fma a multiply-add:
//   m > 1, blocks:
//     P[i][j]  = w(i-j) * (fma chain over c of q[i][c] k[j][c], from 0)       j <= i, else 0
//     O[i][e]  = w(i+1) * (fma chain over c of q[i][c] S[c][e], from 0),
//                then the chain goes on with fma over j of P[i][j] v[j][e]
//     S'[c][e] = w(m) * S[c][e], then fma over j of (w(m-1-j) * k[j][c]) v[j][e]
//   m = 1, recurrence (decoding):
//     S'[c][e] = fma(k[c], v[e], w(1) * S[c][e]);  O[e] = fma chain over c of q[c] S'[c][e]
// All chains run in ascending order, so columns e can be shared out among threads without
// changing a bit.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/grain.h"
#include "kernels/cpu/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/lightning.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once for each instruction set.
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int kTile = static_cast<int>(kLightningTile);
static_assert(kTile == kBlock, "a tile is packed as one block");

/// The rows and columns of one head that a task computes.
struct LightningTask {
    const LightningParams& p;
    int head;
    std::int64_t first_row, last_row;
    int first_col, last_col;  // of v and the state; panel-aligned but for the end

    const float* q(std::int64_t row) const {
        return p.qkv.f32(row) + static_cast<std::ptrdiff_t>(head) * 3 * p.head_dim;
    }
    const float* k(std::int64_t row) const { return q(row) + p.head_dim; }
    const float* v(std::int64_t row) const { return k(row) + p.head_dim; }
    float* out(std::int64_t row) const {
        return p.out.f32(row) + static_cast<std::ptrdiff_t>(head) * p.head_dim;
    }
    float* state() const {
        return p.state + static_cast<std::ptrdiff_t>(head) * p.head_dim * p.head_dim;
    }
    int cols() const { return last_col - first_col; }
};

/// A thread's working copies of a tile.
struct TileScratch {
    float* decay;       // [kTile + 1] w(t)
    float* mask;        // [2 * kTile] w(kTile-1-x) up to x = kTile-1, then 0
    float* q;           // [kTile, head_dim]
    float* k_weighted;  // [kTile, head_dim] w(m-1-j) k[j]
    float* keys;        // panels of the transpose [.][head_dim][panel_width]
    float* values;      // panels [.][kPanelRows][panel_width]
    float* scores;      // [kTile, kTile]
    float* state;       // panels [.][head_dim][panel_width]

    static std::size_t floats(int head_dim, int cols) {
        const auto d = static_cast<std::size_t>(head_dim);
        const auto wide = static_cast<std::size_t>(padded(cols));
        return 5 * kTile + kTile * (3 * d + kTile) + (kPanelRows + d) * wide + 8 * 16;
    }

    TileScratch(float* scratch, int head_dim, int cols) {
        const auto take = [&scratch](std::size_t count) {
            float* const begin = scratch;
            scratch += (count + 15) / 16 * 16;
            return begin;
        };
        const auto d = static_cast<std::size_t>(head_dim);
        const auto wide = static_cast<std::size_t>(padded(cols));
        decay = take(kTile + 1);
        mask = take(2 * kTile);
        q = take(kTile * d);
        k_weighted = take(kTile * d);
        keys = take(kTile * d);
        values = take(kPanelRows * wide);
        scores = take(kTile * kTile);
        state = take(d * wide);
    }

    void set_slope(float slope) {
        for (int t = 0; t <= kTile; ++t)
            decay[t] = static_cast<float>(std::exp(-static_cast<double>(slope) * t));
        for (int x = 0; x < kTile; ++x) mask[x] = decay[kTile - 1 - x];
        std::fill_n(mask + kTile, kTile, 0.0F);
    }
};

struct DecayedScores {
    const TileScratch& s;
    const float* panel;
    int head_dim;
    int first_key;

    template <int kRows>
    HWY_INLINE void rows(int row) const {
        const Floats tag;
        RegisterBlock<kRows> block;
        block.zero();
        block.multiply_add(s.q + static_cast<std::ptrdiff_t>(row) * head_dim, head_dim, 1, panel,
                           head_dim);
        LONGVIEW_UNROLL
        for (int r = 0; r < kRows; ++r) {  // key j of row i stands at mask[kTile-1 - (i-j)]
            const float* weights = s.mask + (kTile - 1 - (row + r) + first_key);
            block.lo[r] = hn::Mul(block.lo[r], hn::LoadU(tag, weights));
            block.hi[r] = hn::Mul(block.hi[r], hn::LoadU(tag, weights + hn::Lanes(tag)));
        }
        block.store(s.scores + row * kTile + first_key, kTile);
    }
};

struct TileOutputs {
    const TileScratch& s;
    const LightningTask& task;
    std::int64_t first_row;
    int col;  // from task.first_col

    template <int kRows>
    HWY_INLINE void rows(int row) const {
        const int dims = task.p.head_dim;
        RegisterBlock<kRows> block;
        block.zero();
        block.multiply_add(s.q + static_cast<std::ptrdiff_t>(row) * dims, dims, 1,
                           s.state + static_cast<std::ptrdiff_t>(col) * dims, dims);
        block.scale(s.decay + row + 1);
        block.multiply_add(s.scores + row * kTile, kTile, 1, s.values + col * kPanelRows,
                           row + kRows);
        const int width = panel_width();
        float* const out = task.out(first_row + row) + task.first_col + col;
        if (task.cols() - col >= width) return block.store(out, task.p.out.stride);
        HWY_ALIGN float rows_out[kRows * 2 * 16];
        block.store(rows_out, width);
        for (int r = 0; r < kRows; ++r)
            std::copy_n(rows_out + r * width, task.cols() - col, out + r * task.p.out.stride);
    }
};

struct StateUpdate {
    const TileScratch& s;
    int head_dim;
    float* panel;         // of the state
    const float* values;  // the same panel of v
    int count;

    template <int kRows>
    HWY_INLINE void rows(int row) const {
        const int width = panel_width();
        float decay[kRows];
        std::fill_n(decay, kRows, s.decay[count]);
        RegisterBlock<kRows> block;
        block.load(panel + row * width, width);
        block.scale(decay);
        block.multiply_add(s.k_weighted + row, 1, head_dim, values, count);
        block.store(panel + row * width, width);
    }
};

/// Brings `count` rows from first_row on into scratch.
HWY_INLINE void load_tile(const LightningTask& task, std::int64_t first_row, int count,
                          const TileScratch& s) {
    const int dims = task.p.head_dim;
    const float* k[kTile];
    const float* v[kTile];
    for (int i = 0; i < count; ++i) {
        k[i] = task.k(first_row + i);
        v[i] = task.v(first_row + i) + task.first_col;
        std::copy_n(task.q(first_row + i), dims, s.q + static_cast<std::ptrdiff_t>(i) * dims);
        const float weight = s.decay[count - 1 - i];
        float* HWY_RESTRICT weighted = s.k_weighted + static_cast<std::ptrdiff_t>(i) * dims;
        const float* HWY_RESTRICT from = k[i];
        for (int c = 0; c < dims; ++c) weighted[c] = weight * from[c];
    }
    pack_transposed(k, count, dims, s.keys);
    pack_rows(v, count, task.cols(), kPanelRows, s.values);
}

/// The block form for rows first_row ... first_row + count - 1, state in panels.
HWY_INLINE void block_form(const LightningTask& task, std::int64_t first_row, int count,
                           const TileScratch& s) {
    const int dims = task.p.head_dim;
    const int width = panel_width();
    load_tile(task, first_row, count, s);
    for (int key = 0; key < count; key += width) {
        // Rows above the diagonal are left out but for those that TileOutputs may take in one
        // group with a row that sees the key.
        for_row_groups(
            std::max(0, key - kGroupRows + 1), count,
            DecayedScores{s, s.keys + static_cast<std::ptrdiff_t>(key) * dims, dims, key});
    }
    for (int col = 0; col < task.cols(); col += width) {
        for_row_groups(0, count, TileOutputs{s, task, first_row, col});
        float* const panel = s.state + static_cast<std::ptrdiff_t>(col) * dims;
        for_row_groups(0, dims, StateUpdate{s, dims, panel, s.values + col * kPanelRows, count});
    }
}

/// kVecs vectors of the recurrence from column `col` on; sums stay in registers over all rows.
template <int kVecs>
HWY_INLINE void step_columns(const LightningTask& task, std::int64_t row, float decay, int col) {
    const Floats tag;
    const std::size_t lanes = hn::Lanes(tag);
    const int dims = task.p.head_dim;
    const float* HWY_RESTRICT q = task.q(row);
    const float* HWY_RESTRICT k = task.k(row);
    const FloatVec lambda = hn::Set(tag, decay);
    FloatVec v[kVecs];
    FloatVec sum[kVecs];
    LONGVIEW_UNROLL
    for (int i = 0; i < kVecs; ++i) {
        v[i] = hn::LoadU(tag, task.v(row) + col + i * lanes);
        sum[i] = hn::Zero(tag);
    }
    float* HWY_RESTRICT state = task.state() + col;
    for (int c = 0; c < dims; ++c, state += dims) {
        const FloatVec k_c = hn::Set(tag, k[c]);
        const FloatVec q_c = hn::Set(tag, q[c]);
        LONGVIEW_UNROLL
        for (int i = 0; i < kVecs; ++i) {
            float* const at = state + i * lanes;
            const FloatVec updated = hn::MulAdd(k_c, v[i], hn::Mul(lambda, hn::LoadU(tag, at)));
            hn::StoreU(updated, tag, at);
            sum[i] = hn::MulAdd(q_c, updated, sum[i]);
        }
    }
    LONGVIEW_UNROLL
    for (int i = 0; i < kVecs; ++i) hn::StoreU(sum[i], tag, task.out(row) + col + i * lanes);
}

/// One column, where head_dim is not a whole number of vectors.
HWY_INLINE void step_column(const LightningTask& task, std::int64_t row, float decay, int col) {
    const int dims = task.p.head_dim;
    const float* q = task.q(row);
    const float* k = task.k(row);
    const float v = task.v(row)[col];
    float* state = task.state() + col;
    float sum = 0.0F;
    for (int c = 0; c < dims; ++c, state += dims) {
        *state = decay * *state + k[c] * v;
        sum += q[c] * *state;
    }
    task.out(row)[col] = sum;
}

/// The recurrence for one row, state in place.
HWY_INLINE void step_form(const LightningTask& task, std::int64_t row) {
    const int lanes = static_cast<int>(hn::Lanes(Floats()));
    const auto decay = static_cast<float>(std::exp(-static_cast<double>(task.p.slopes[task.head])));
    int col = task.first_col;
    for (; col + 4 * lanes <= task.last_col; col += 4 * lanes)
        step_columns<4>(task, row, decay, col);
    for (; col + lanes <= task.last_col; col += lanes) step_columns<1>(task, row, decay, col);
    for (; col < task.last_col; ++col) step_column(task, row, decay, col);
}

HWY_INLINE void pack_state(const LightningTask& task, const TileScratch& s) {
    const int width = panel_width();
    const float* row = task.state() + task.first_col;
    for (int c = 0; c < task.p.head_dim; ++c, row += task.p.head_dim)
        pack_rows(&row, 1, task.cols(), task.p.head_dim,
                  s.state + static_cast<std::ptrdiff_t>(c) * width);
}

HWY_INLINE void unpack_state(const LightningTask& task, const TileScratch& s) {
    for (int c = 0; c < task.p.head_dim; ++c)
        unpack_row(
            s.state, task.p.head_dim, c, task.cols(),
            task.state() + static_cast<std::ptrdiff_t>(c) * task.p.head_dim + task.first_col);
}

/// All pieces of the task's rows in order. Pieces of one row can only be the first and the last.
void run_lightning(const LightningParams& p, int head, std::int64_t first_row,
                   std::int64_t last_row, int first_col, int last_col, Context& context,
                   int thread) {
    const LightningTask task{p, head, first_row, last_row, first_col, last_col};
    const auto piece_end = [&task](std::int64_t row) {
        const std::int64_t in_tile = (task.p.position + row) % kTile;
        return std::min(row + kTile - in_tile, task.last_row);
    };
    std::int64_t row = task.first_row;
    if (piece_end(row) == row + 1) step_form(task, row++);
    if (row == task.last_row) return;
    const int dims = task.p.head_dim;
    if (piece_end(row) > row + 1) {
        TileScratch scratch(context.scratch(thread, TileScratch::floats(dims, task.cols())), dims,
                            task.cols());
        scratch.set_slope(task.p.slopes[task.head]);
        pack_state(task, scratch);
        for (std::int64_t end = piece_end(row); row < task.last_row && end > row + 1;
             row = end, end = piece_end(row))
            block_form(task, row, static_cast<int>(end - row), scratch);
        unpack_state(task, scratch);
    }
    if (row < task.last_row) step_form(task, row);
}

int lightning_panel_width() {
    return panel_width();
}

}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longview::kernels::cpu {
namespace {

HWY_EXPORT(run_lightning);
HWY_EXPORT(lightning_panel_width);

// Rows a task takes a head through before it looks at the cancel flag: about 3 ms at head_dim 128.
constexpr std::int64_t kRowsPerPass = 32 * kLightningTile;

void check_lightning(const LightningParams& p) {
    const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
    LONGVIEW_CHECK(p.heads > 0 && p.head_dim > 0, "lightning attention needs heads and dims");
    LONGVIEW_CHECK(p.position >= 0, "a position before the sequence");
    LONGVIEW_CHECK(p.qkv.cols == 3 * width && p.qkv.dtype == DType::kF32,
                   "qkv must be [n, heads * 3 * head_dim] in kF32");
    LONGVIEW_CHECK(p.out.rows == p.qkv.rows && p.out.cols == width && p.out.dtype == DType::kF32,
                   "out must be [n, heads * head_dim] in kF32");
    LONGVIEW_CHECK(p.slopes != nullptr && p.state != nullptr, "slopes and state are needed");
}

}  // namespace

void lightning_attention(Context& c, const LightningParams& p) {
    if (p.qkv.rows == 0) return;
    check_lightning(p);
    // With fewer heads than threads, the columns of a head are shared out too; each part repeats
    // the scores, so not more parts than needed.
    const int width = HWY_DYNAMIC_DISPATCH(lightning_panel_width)();
    const int panels = (p.head_dim + width - 1) / width;
    const int parts = std::clamp((c.pool.size() + p.heads - 1) / p.heads, 1, panels);
    const int part_cols = (panels + parts - 1) / parts * width;
    const std::int64_t tasks = std::int64_t{p.heads} * parts;
    const auto run = HWY_DYNAMIC_DISPATCH(run_lightning);
    for (std::int64_t first = 0; first < p.qkv.rows;) {
        const std::int64_t in_tile = (p.position + first) % kLightningTile;
        const std::int64_t last = std::min(first + kRowsPerPass - in_tile, p.qkv.rows);
        const double operations =
            4.0 * static_cast<double>((last - first) * p.heads * p.head_dim * p.head_dim);
        c.pool.parallel_for(
            tasks, tasks_per_piece(tasks, operations),
            [&](std::int64_t begin, std::int64_t end, int thread) {
                for (std::int64_t task = begin; task < end; ++task) {
                    const int first_col = static_cast<int>(task % parts) * part_cols;
                    const int last_col = std::min(first_col + part_cols, p.head_dim);
                    if (first_col < last_col)
                        run(p, static_cast<int>(task / parts), first, last, first_col, last_col, c,
                            thread);
                }
            });
        first = last;
    }
}

}  // namespace longview::kernels::cpu
#endif  // HWY_ONCE

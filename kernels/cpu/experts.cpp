// The mixture of experts: which experts a row goes to, and what they answer.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace longview::kernels::cpu {
namespace {

constexpr int kMaxTopK = 32;
// Scratch for one pass over rows; 2100 rows of the real model. Every pass reads all experts again,
// so it should be large; the planner of memory should not notice it.
constexpr std::int64_t kScratchBytes = std::int64_t{256} << 20;
constexpr std::int64_t kMaxRowsPerPass = 2048;
constexpr std::int64_t kAlone = 32768;  // as in linear.cpp

/// The top_k largest of `count` logits, the lower index first among equals, and their softmax.
/// A NaN makes every weight NaN; ids are valid all the same.
void choose(const float* logits, std::int64_t count, int top_k, std::int32_t* ids, float* weights) {
    for (int rank = 0; rank < top_k; ++rank) {
        std::int32_t best = -1;
        for (std::int32_t e = 0; e < count; ++e) {
            if (std::find(ids, ids + rank, e) != ids + rank) continue;
            if (best < 0 || logits[e] > logits[best]) best = e;
        }
        ids[rank] = best;
    }
    if (std::any_of(logits, logits + count, [](float v) { return std::isnan(v); })) {
        std::fill(weights, weights + top_k, std::numeric_limits<float>::quiet_NaN());
        return;
    }
    float sum = 0.0F;
    for (int rank = 0; rank < top_k; ++rank) {
        weights[rank] = std::exp(logits[ids[rank]] - logits[ids[0]]);
        sum += weights[rank];
    }
    for (int rank = 0; rank < top_k; ++rank) weights[rank] /= sum;
}

/// One pass: (row, rank) pairs sorted by expert, and what is computed for them.
struct Pass {
    const ExpertsParams& p;
    std::int64_t first = 0;  // row
    std::int64_t rows = 0;
    std::int64_t hidden = 0;
    std::int64_t inner = 0;
    float* inner_rows = nullptr;     // [pairs, inner], sorted
    float* outer_rows = nullptr;     // [pairs, hidden], sorted
    std::int32_t* sorted = nullptr;  // [pairs] pair at each place
    std::int32_t* place = nullptr;   // [pairs] place of each pair
    std::int32_t* begins = nullptr;  // [experts + 1] first place of each expert
    std::int32_t* pieces = nullptr;  // [experts + 1] first piece of each expert

    std::int64_t pairs() const { return rows * p.top_k; }
    std::int32_t expert(std::int64_t pair) const { return p.ids[first * p.top_k + pair]; }
    const float* input(std::int64_t at) const { return p.x.f32(first + sorted[at] / p.top_k); }
    std::int64_t expert_rows(std::size_t e) const { return begins[e + 1] - begins[e]; }
};

std::size_t integers_per_pass(const ExpertsParams& p, std::int64_t rows) {
    return 2 * static_cast<std::size_t>(rows * p.top_k) + 2 * (p.experts.size() + 1);
}

Pass make_pass(Context& c, const ExpertsParams& p, std::int64_t most_rows) {
    Pass pass{p};
    pass.hidden = p.x.cols;
    pass.inner = p.experts[0].w1.rows;
    const std::int64_t pairs = most_rows * p.top_k;
    const auto floats = static_cast<std::size_t>(pairs * (pass.hidden + pass.inner));
    static_assert(sizeof(std::int32_t) == sizeof(float));
    float* const scratch = c.shared_scratch(floats + integers_per_pass(p, most_rows));
    pass.inner_rows = scratch;
    pass.outer_rows = scratch + pairs * pass.inner;
    pass.sorted = reinterpret_cast<std::int32_t*>(scratch + floats);
    pass.place = pass.sorted + pairs;
    pass.begins = pass.place + pairs;
    pass.pieces = pass.begins + p.experts.size() + 1;
    return pass;
}

/// Counting sort of the pairs by expert; rows stay in order within an expert.
void sort_pairs(Pass& pass) {
    const std::size_t experts = pass.p.experts.size();
    std::fill(pass.begins, pass.begins + experts + 1, 0);
    std::int32_t* const next = pass.pieces;  // not yet in use
    for (std::int64_t i = 0; i < pass.pairs(); ++i) ++pass.begins[pass.expert(i) + 1];
    for (std::size_t e = 0; e < experts; ++e) {
        next[e] = pass.begins[e];
        pass.begins[e + 1] += pass.begins[e];
    }
    for (std::int64_t i = 0; i < pass.pairs(); ++i) {
        const std::int32_t at = next[pass.expert(i)]++;
        pass.sorted[at] = static_cast<std::int32_t>(i);
        pass.place[i] = at;
    }
}

/// Runs block(expert, blocking, block index, thread) for all blocks of products of every expert's
/// rows with a weight [outputs, inputs].
template <class Block>
void for_each_block(Context& c, const Pass& pass, std::int64_t inputs, std::int64_t outputs,
                    const Block& block) {
    const std::size_t experts = pass.p.experts.size();
    pass.pieces[0] = 0;
    for (std::size_t e = 0; e < experts; ++e) {
        const Blocking b = Blocking::of(pass.expert_rows(e), inputs);
        pass.pieces[e + 1] =
            pass.pieces[e] + static_cast<std::int32_t>(b.row_blocks * b.output_blocks(outputs));
    }
    const std::int64_t pieces = pass.pieces[experts];
    const auto body = [&](std::int64_t begin, std::int64_t end, int thread) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int32_t* const after =
                std::upper_bound(pass.pieces, pass.pieces + experts + 1, i);
            const auto e = static_cast<std::size_t>(after - pass.pieces - 1);
            block(e, Blocking::of(pass.expert_rows(e), inputs), i - pass.pieces[e], thread);
        }
    };
    const bool alone = pass.pairs() * inputs * outputs < kAlone;
    c.pool.parallel_for(pieces, alone ? pieces : 1, std::ref(body));
}

/// Where a block lies among an expert's rows (as places) and outputs.
struct Extent {
    std::int64_t place, rows, first, count;

    Extent(const Pass& pass, std::size_t e, const Blocking& b, std::int64_t index,
           std::int64_t outputs)
        : place(pass.begins[e] + index % b.row_blocks * b.rows),
          rows(std::min(b.rows, pass.begins[e + 1] - place)),
          first(index / b.row_blocks * b.outputs),
          count(std::min(b.outputs, outputs - first)) {}
};

using RowPointers = std::array<const float*, Blocking::kMaxRows>;

/// inner_rows = silu(w1 x) * (w3 x)
void inner_products(Context& c, const Pass& pass) {
    const auto block = [&](std::size_t e, const Blocking& b, std::int64_t index, int thread) {
        const Extent at(pass, e, b, index, pass.inner);
        float* const scratch = c.scratch(thread, b.scratch_floats() + 2 * b.block_floats());
        float* const gate = scratch + b.scratch_floats();
        float* const up = gate + b.block_floats();
        RowPointers x;
        for (std::int64_t r = 0; r < at.rows; ++r)
            x[static_cast<std::size_t>(r)] = pass.input(at.place + r);
        const ExpertWeights& w = pass.p.experts[e];
        dot_products(x.data(), at.rows, w.w1, at.first, at.count, gate, b.outputs, scratch);
        dot_products(x.data(), at.rows, w.w3, at.first, at.count, up, b.outputs, scratch);
        for (std::int64_t r = 0; r < at.rows; ++r)
            silu_product_row(gate + r * b.outputs, up + r * b.outputs, at.count,
                             pass.inner_rows + (at.place + r) * pass.inner + at.first);
    };
    for_each_block(c, pass, pass.hidden, pass.inner, block);
}

/// outer_rows = w2 inner_rows
void outer_products(Context& c, const Pass& pass) {
    const auto block = [&](std::size_t e, const Blocking& b, std::int64_t index, int thread) {
        const Extent at(pass, e, b, index, pass.hidden);
        float* const scratch = c.scratch(thread, b.scratch_floats());
        RowPointers x;
        for (std::int64_t r = 0; r < at.rows; ++r)
            x[static_cast<std::size_t>(r)] = pass.inner_rows + (at.place + r) * pass.inner;
        dot_products(x.data(), at.rows, pass.p.experts[e].w2, at.first, at.count,
                     pass.outer_rows + at.place * pass.hidden + at.first, pass.hidden, scratch);
    };
    for_each_block(c, pass, pass.inner, pass.hidden, block);
}

/// The weighted sum over ranks, in order of rank whatever the order of experts was.
void combine(Context& c, const Pass& pass) {
    const ExpertsParams& p = pass.p;
    const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
        std::array<const float*, kMaxTopK> y;
        for (std::int64_t r = begin; r < end; ++r) {
            for (int i = 0; i < p.top_k; ++i)
                y[static_cast<std::size_t>(i)] =
                    pass.outer_rows + pass.place[r * p.top_k + i] * pass.hidden;
            const std::int64_t row = pass.first + r;
            combine_row(p.x.f32(row), y.data(), p.weights + row * p.top_k, p.top_k, p.alpha, p.beta,
                        pass.hidden, p.out.f32(row));
        }
    };
    c.pool.parallel_for(pass.rows, 1 + kAlone / (pass.hidden + 1), std::ref(rows));
}

/// outer_products and combine for one row without a barrier in between: the same sums.
void outer_products_of_one_row(Context& c, const Pass& pass) {
    const ExpertsParams& p = pass.p;
    const Blocking b = Blocking::of(1, pass.inner);
    const auto blocks = [&](std::int64_t begin, std::int64_t end, int thread) {
        float* const scratch = c.scratch(
            thread, b.scratch_floats() + b.block_floats() * static_cast<std::size_t>(p.top_k));
        float* const results = scratch + b.scratch_floats();
        std::array<const float*, kMaxTopK> y;
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = i * b.outputs;
            const std::int64_t count = std::min(b.outputs, pass.hidden - first);
            for (std::int64_t rank = 0; rank < p.top_k; ++rank) {
                const float* const x = pass.inner_rows + pass.place[rank] * pass.inner;
                const auto e = static_cast<std::size_t>(pass.expert(rank));
                float* const out = results + rank * b.outputs;
                dot_products(&x, 1, p.experts[e].w2, first, count, out, b.outputs, scratch);
                y[static_cast<std::size_t>(rank)] = out;
            }
            combine_row(p.x.f32(pass.first) + first, y.data(), p.weights + pass.first * p.top_k,
                        p.top_k, p.alpha, p.beta, count, p.out.f32(pass.first) + first);
        }
    };
    const std::int64_t pieces = b.output_blocks(pass.hidden);
    const bool alone = p.top_k * pass.inner * pass.hidden < kAlone;
    c.pool.parallel_for(pieces, alone ? pieces : 1, std::ref(blocks));
}

void check(const RouteParams& p) {
    LONGVIEW_CHECK(p.x.dtype == DType::kF32 && p.normed.dtype == DType::kF32,
                   "route takes float rows");
    LONGVIEW_CHECK(p.normed.rows == p.x.rows && p.normed.cols == p.x.cols,
                   "normed has the shape of x");
    LONGVIEW_CHECK(p.gate.cols == p.x.cols, "the gate's columns are the inputs");
    LONGVIEW_CHECK(p.top_k > 0 && p.top_k <= kMaxTopK && p.top_k <= p.gate.rows,
                   "top_k lies between 1 and the number of experts, at most 32");
}

void check(const ExpertsParams& p) {
    LONGVIEW_CHECK(p.x.dtype == DType::kF32 && p.out.dtype == DType::kF32,
                   "experts takes and writes float rows");
    LONGVIEW_CHECK(p.out.rows == p.x.rows && p.out.cols == p.x.cols, "out has the shape of x");
    LONGVIEW_CHECK(p.top_k > 0 && p.top_k <= kMaxTopK, "top_k lies between 1 and 32");
    LONGVIEW_CHECK(!p.experts.empty(), "there is at least one expert");
    const std::int64_t inner = p.experts[0].w1.rows;
    for (const ExpertWeights& w : p.experts) {
        LONGVIEW_CHECK(w.w1.rows == inner && w.w3.rows == inner && w.w2.cols == inner,
                       "experts have one intermediate size");
        LONGVIEW_CHECK(w.w1.cols == p.x.cols && w.w3.cols == p.x.cols && w.w2.rows == p.x.cols,
                       "experts have the hidden size of x");
    }
    for (std::int64_t i = 0; i < p.x.rows * p.top_k; ++i) {
        if (p.ids[i] >= 0 && p.ids[i] < static_cast<std::int64_t>(p.experts.size())) continue;
        throw Error(Category::kBug, "internal error: a row is routed to expert " +
                                        std::to_string(p.ids[i]) + ", but the layer has " +
                                        std::to_string(p.experts.size()));
    }
}

}  // namespace

void route(Context& c, const RouteParams& p) {
    check(p);
    const Blocking b = Blocking::of(p.x.rows, p.x.cols);
    const std::int64_t experts = p.gate.rows;
    const auto blocks = [&](std::int64_t begin, std::int64_t end, int thread) {
        float* const scratch =
            c.scratch(thread, b.scratch_floats() + static_cast<std::size_t>(b.rows * experts));
        float* const logits = scratch + b.scratch_floats();
        RowPointers v;
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t first = i * b.rows;
            const std::int64_t rows = std::min(b.rows, p.x.rows - first);
            for (std::int64_t r = 0; r < rows; ++r) {
                float* const normed = p.normed.f32(first + r);
                rms_norm_row(p.x.f32(first + r), p.gain, nullptr, p.eps, p.x.cols, normed);
                v[static_cast<std::size_t>(r)] = normed;
            }
            for (std::int64_t e = 0; e < experts; e += b.outputs)
                dot_products(v.data(), rows, p.gate, e, std::min(b.outputs, experts - e),
                             logits + e, experts, scratch);
            for (std::int64_t r = 0; r < rows; ++r)
                choose(logits + r * experts, experts, p.top_k, p.ids + (first + r) * p.top_k,
                       p.weights + (first + r) * p.top_k);
        }
    };
    c.pool.parallel_for(b.row_blocks, 1, std::ref(blocks));
}

void experts(Context& c, const ExpertsParams& p) {
    check(p);
    if (p.x.rows == 0) return;
    const std::int64_t inner = p.experts[0].w1.rows;
    const std::int64_t bytes_per_row =
        p.top_k * (p.x.cols + inner + 2) * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t fitting = std::max<std::int64_t>(1, kScratchBytes / bytes_per_row);
    const std::int64_t most_rows = std::min({p.x.rows, fitting, kMaxRowsPerPass});
    Pass pass = make_pass(c, p, most_rows);
    for (; pass.first < p.x.rows; pass.first += most_rows) {
        pass.rows = std::min(most_rows, p.x.rows - pass.first);
        sort_pairs(pass);
        inner_products(c, pass);
        if (pass.rows == 1) {
            outer_products_of_one_row(c, pass);
        } else {
            outer_products(c, pass);
            combine(c, pass);
        }
    }
}

}  // namespace longview::kernels::cpu

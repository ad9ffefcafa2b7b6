// Causal grouped-query attention over paged keys and values (model-spec 4), with the online
// softmax of Milakov & Gimelshein 2018 (arXiv:1805.02867) in blocks as in FlashAttention (Dao et
// al. 2022, arXiv:2205.14135). The score matrix never exists beyond a block.
//
// What a row computes depends on its position alone:
//   keys are cut at absolute multiples of kRangeKeys into ranges, and those into blocks of kBlock;
//   within a range the blocks go through one online softmax that starts afresh;
//   the ranges' (max, sum, acc) are merged in ascending order.
// So a range can be computed by whichever thread is free (decoding over a long cache), or all of
// them by one thread for a tile of queries (prefill), with the same bits.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/grain.h"
#include "kernels/cpu/kv_pages.h"
#include "kernels/cpu/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/softmax_attention.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once for each instruction set.
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"

#ifndef LONGVIEW_KERNELS_CPU_SOFTMAX_TYPES_
#define LONGVIEW_KERNELS_CPU_SOFTMAX_TYPES_
namespace longview::kernels::cpu {

// Long enough that merging costs nothing beside it, short enough that decoding at a few thousand
// positions feeds several threads.
constexpr std::int64_t kRangeKeys = 1024;

/// A tile of queries of one key/value head, rows of the call.
struct QueryTile {
    int kv_head = 0;
    std::int64_t first = 0;
    std::int64_t last = 0;
};

/// Partial results that are merged: per (query of the pass, head), index
/// (query - first_query) * heads + head. The unnormalised acc lies in `out` of the call.
struct Running {
    std::int64_t first_query = 0;
    float* max = nullptr;
    float* sum = nullptr;
};

}  // namespace longview::kernels::cpu
#endif  // LONGVIEW_KERNELS_CPU_SOFTMAX_TYPES_

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {

HWY_INLINE int group_size(const SoftmaxAttentionParams& p) {
    return p.heads / p.kv.kv_heads;
}

/// One row's result for one range.
struct Partial {
    float max;
    float sum;
    const float* acc;  // [head_dim]
};

/// Merges the row's result of `range` into what is known of the ranges before; after the row's
/// last range, `out` is the result.
HWY_INLINE void merge_row(const SoftmaxAttentionParams& p, const Running& running,
                          std::int64_t query, int head, std::int64_t range,
                          const Partial& partial) {
    const int dims = p.kv.head_dim;
    const std::int64_t at = (query - running.first_query) * p.heads + head;
    float* HWY_RESTRICT out = p.out.f32(query) + static_cast<std::ptrdiff_t>(head) * dims;
    const float* HWY_RESTRICT acc = partial.acc;
    float& max = running.max[at];
    float& sum = running.sum[at];
    if (range == 0) {
        max = partial.max;
        sum = partial.sum;
        std::copy_n(acc, dims, out);
    } else {
        const float new_max = std::max(max, partial.max);
        const float before = exp2_nonpositive(max - new_max);
        const float here = exp2_nonpositive(partial.max - new_max);
        max = new_max;
        sum = sum * before + partial.sum * here;
        for (int i = 0; i < dims; ++i) out[i] = out[i] * before + acc[i] * here;
    }
    if ((p.position + query) / kRangeKeys != range) return;
    // Adding zero turns -0 into +0: whether an underflowed sum is -0 depends on the masked keys
    // beside it.
    const float factor = 1.0F / sum;
    for (int i = 0; i < dims; ++i) out[i] = out[i] * factor + 0.0F;
}

/// Takes the tile through the keys of a range.
HWY_INLINE void attend_range(const SoftmaxAttentionParams& p, const QueryTile& queries,
                             std::int64_t range, SoftmaxTile& tile) {
    const KvPages pages(p.kv);
    const std::int64_t first = range * kRangeKeys;
    const std::int64_t end = std::min(first + kRangeKeys, p.position + queries.last);
    tile.start();
    attend_keys(
        tile, end - first, p.kv.dtype, p.position + queries.first + 1 - first, [&](std::int64_t i) {
            return std::pair<const void*, const void*>(pages.key(first + i, queries.kv_head),
                                                       pages.value(first + i, queries.kv_head));
        });
}

HWY_INLINE SoftmaxTile load_queries(const SoftmaxAttentionParams& p, const QueryTile& queries,
                                    Context& context, int thread) {
    const int group = group_size(p);
    const int dims = p.kv.head_dim;
    const int rows = static_cast<int>(queries.last - queries.first) * group;
    SoftmaxTile tile(context.scratch(thread, SoftmaxTile::scratch_floats(rows, dims)), rows, group,
                     dims);
    for (int row = 0; row < rows; ++row) {
        const int head = queries.kv_head * group + row % group;
        const float* q = p.q.f32(queries.first + row / group);
        set_query(tile, row, q + static_cast<std::ptrdiff_t>(head) * dims, p.scale);
    }
    return tile;
}

/// Prefill: a tile through the ranges [first_range, last_range), merged as they come.
void attend_and_merge(const SoftmaxAttentionParams& p, const QueryTile& queries,
                      std::int64_t first_range, std::int64_t last_range, const Running& running,
                      Context& context, int thread) {
    SoftmaxTile tile = load_queries(p, queries, context, thread);
    last_range = std::min(last_range, (p.position + queries.last - 1) / kRangeKeys + 1);
    for (std::int64_t range = first_range; range < last_range; ++range) {
        attend_range(p, queries, range, tile);
        for (int row = 0; row < tile.rows; ++row) {
            const std::int64_t query = queries.first + row / tile.heads;
            if (p.position + query < range * kRangeKeys) continue;
            unpack_row(tile.acc, tile.rows, row, tile.head_dim, tile.staging);
            merge_row(p, running, query, queries.kv_head * tile.heads + row % tile.heads, range,
                      {tile.max[row], tile.sum[row], tile.staging});
        }
    }
}

/// Decoding: a tile through one range; per row head_dim + 2 floats (acc, max, sum) go to `out`.
void attend_part(const SoftmaxAttentionParams& p, const QueryTile& queries, std::int64_t range,
                 float* out, Context& context, int thread) {
    SoftmaxTile tile = load_queries(p, queries, context, thread);
    attend_range(p, queries, range, tile);
    for (int row = 0; row < tile.rows; ++row, out += tile.head_dim + 2) {
        unpack_row(tile.acc, tile.rows, row, tile.head_dim, out);
        out[tile.head_dim] = tile.max[row];
        out[tile.head_dim + 1] = tile.sum[row];
    }
}

/// Merges what attend_part left for the tile, ranges `stride` floats apart.
void merge_parts(const SoftmaxAttentionParams& p, const QueryTile& queries,
                 std::int64_t first_range, std::int64_t last_range, const float* parts,
                 std::int64_t stride, const Running& running) {
    const int dims = p.kv.head_dim;
    const int group = group_size(p);
    const int rows = static_cast<int>(queries.last - queries.first) * group;
    for (int row = 0; row < rows; ++row) {
        const std::int64_t query = queries.first + row / group;
        const std::int64_t end = std::min(last_range, (p.position + query) / kRangeKeys + 1);
        for (std::int64_t range = first_range; range < end; ++range) {
            const float* part = parts + (range - first_range) * stride +
                                static_cast<std::ptrdiff_t>(row) * (dims + 2);
            merge_row(p, running, query, queries.kv_head * group + row % group, range,
                      {part[dims], part[dims + 1], part});
        }
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longview::kernels::cpu {
namespace {

HWY_EXPORT(attend_and_merge);
HWY_EXPORT(attend_part);
HWY_EXPORT(merge_parts);

// Rows (queries times heads of a group) that share a packed block of keys: packing is then a
// small part of the arithmetic, and the tile stays in an L2 of 512 KB at head_dim 128. Fewer where
// threads would be idle otherwise.
constexpr std::int64_t kMostTileRows = 192;
constexpr std::int64_t kFewestTileRows = 48;
// Bound of the running sums, and of the work between two looks at the cancel flag.
constexpr std::int64_t kQueriesPerPass = 1024;
constexpr std::int64_t kRangesPerPass = 2;

void check_softmax(const SoftmaxAttentionParams& p) {
    check_kv(p.kv);
    const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.kv.head_dim;
    LONGVIEW_CHECK(p.heads > 0 && p.heads % p.kv.kv_heads == 0,
                   "query heads must be a multiple of key/value heads");
    LONGVIEW_CHECK(p.position >= 0, "a position before the sequence");
    LONGVIEW_CHECK(p.q.cols == width && p.q.dtype == DType::kF32,
                   "q must be [n, heads * head_dim] in kF32");
    LONGVIEW_CHECK(p.out.rows == p.q.rows && p.out.cols == width && p.out.dtype == DType::kF32,
                   "out must be [n, heads * head_dim] in kF32");
}

/// The queries [first, last) of a call, cut into tiles.
struct Pass {
    const SoftmaxAttentionParams& p;
    std::int64_t first;
    std::int64_t last;
    std::int64_t tile_queries;

    std::int64_t tiles() const { return (last - first + tile_queries - 1) / tile_queries; }
    std::int64_t tasks() const { return tiles() * p.kv.kv_heads; }
    /// Tiles of one head follow each other, so its keys stay in the last level cache.
    QueryTile tile(std::int64_t task) const {
        const std::int64_t begin = first + task % tiles() * tile_queries;
        return {static_cast<int>(task / tiles()), begin, std::min(begin + tile_queries, last)};
    }
    std::int64_t ranges() const { return (p.position + last - 1) / kRangeKeys + 1; }
    double operations_per_range() const {
        const std::int64_t keys = std::min(kRangeKeys, p.position + last);
        return 4.0 * static_cast<double>((last - first) * p.heads * p.kv.head_dim * keys);
    }
};

void prefill_pass(Context& c, const Pass& pass, const Running& running) {
    const auto run = HWY_DYNAMIC_DISPATCH(attend_and_merge);
    for (std::int64_t range = 0; range < pass.ranges(); range += kRangesPerPass) {
        c.pool.parallel_for(pass.tasks(), 1, [&](std::int64_t begin, std::int64_t end, int thread) {
            for (std::int64_t task = begin; task < end; ++task)
                run(pass.p, pass.tile(task), range, range + kRangesPerPass, running, c, thread);
        });
    }
}

/// Few tiles: the ranges are shared out among the threads as well, `parts` of them at a time.
void decode_pass(Context& c, const Pass& pass, const Running& running, std::int64_t parts,
                 float* scratch) {
    const auto run = HWY_DYNAMIC_DISPATCH(attend_part);
    const auto merge = HWY_DYNAMIC_DISPATCH(merge_parts);
    const std::int64_t tile_floats =
        pass.tile_queries * (pass.p.heads / pass.p.kv.kv_heads) * (pass.p.kv.head_dim + 2);
    const std::int64_t stride = pass.tasks() * tile_floats;
    for (std::int64_t range = 0; range < pass.ranges(); range += parts) {
        const std::int64_t end_range = std::min(range + parts, pass.ranges());
        c.pool.parallel_for(
            pass.tasks() * (end_range - range), 1,
            [&](std::int64_t begin, std::int64_t end, int thread) {
                for (std::int64_t i = begin; i < end; ++i) {
                    const std::int64_t task = i % pass.tasks();
                    const std::int64_t part = i / pass.tasks();
                    const QueryTile tile = pass.tile(task);
                    if ((pass.p.position + tile.last - 1) / kRangeKeys < range + part) continue;
                    run(pass.p, tile, range + part, scratch + part * stride + task * tile_floats, c,
                        thread);
                }
            });
        const double merging = pass.operations_per_range() / static_cast<double>(kRangeKeys) *
                               static_cast<double>(end_range - range);
        const std::int64_t grain = tasks_per_piece(pass.tasks(), merging);
        c.pool.parallel_for(pass.tasks(), grain, [&](std::int64_t begin, std::int64_t end, int) {
            for (std::int64_t task = begin; task < end; ++task)
                merge(pass.p, pass.tile(task), range, end_range, scratch + task * tile_floats,
                      stride, running);
        });
    }
}

}  // namespace

void softmax_attention(Context& c, const SoftmaxAttentionParams& p) {
    if (p.q.rows == 0) return;
    check_softmax(p);
    const int group = p.heads / p.kv.kv_heads;
    const std::int64_t fair_share = p.q.rows * p.heads / (4 * c.pool.size());
    const std::int64_t tile_rows = std::clamp(fair_share, kFewestTileRows, kMostTileRows);
    const std::int64_t tile_queries = std::clamp<std::int64_t>(tile_rows / group, 1, p.q.rows);
    const std::int64_t pass_queries = kQueriesPerPass / tile_queries * tile_queries;
    for (std::int64_t first = 0; first < p.q.rows; first += pass_queries) {
        const Pass pass{p, first, std::min(first + pass_queries, p.q.rows), tile_queries};
        const std::int64_t threads = c.pool.size();
        const bool few_tiles = threads > 1 && pass.tasks() < 2 * threads && pass.ranges() > 1;
        const std::int64_t parts =
            few_tiles ? std::min((8 * threads + pass.tasks() - 1) / pass.tasks(), pass.ranges())
                      : 0;
        const std::int64_t running_floats = (pass.last - pass.first) * p.heads;
        const std::int64_t part_floats =
            parts * pass.tasks() * tile_queries * group * (p.kv.head_dim + 2);
        float* const scratch =
            c.shared_scratch(static_cast<std::size_t>(2 * running_floats + part_floats));
        const Running running{first, scratch, scratch + running_floats};
        if (few_tiles) {
            decode_pass(c, pass, running, parts, scratch + 2 * running_floats);
        } else {
            prefill_pass(c, pass, running);
        }
    }
}

}  // namespace longview::kernels::cpu
#endif  // HWY_ONCE

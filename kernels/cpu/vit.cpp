// The vision tower's own operators: tiles to patch embeddings, and attention inside a tile
// (model-spec 7.4, 7.5; Dosovitskiy et al. 2020, arXiv:2010.11929).
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vit.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once for each instruction set.
#include "hwy/highway.h"
#include "kernels/cpu/attention-inl.h"

#ifndef LONGVIEW_KERNELS_CPU_VIT_TYPES_
#define LONGVIEW_KERNELS_CPU_VIT_TYPES_
namespace longview::kernels::cpu {

/// Queries [first, last) of one head in one tile of the picture.
struct VitTask {
    std::int64_t tile = 0;
    int head = 0;
    std::int64_t first = 0;
    std::int64_t last = 0;
};

}  // namespace longview::kernels::cpu
#endif  // LONGVIEW_KERNELS_CPU_VIT_TYPES_

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {

/// One online softmax over the tile's tokens in blocks of kBlock, ascending.
void attend_tile(const VitAttentionParams& p, const VitTask& task, Context& context, int thread) {
    const int dims = static_cast<int>(p.q.cols / p.heads);
    const int rows = static_cast<int>(task.last - task.first);
    const std::ptrdiff_t col = static_cast<std::ptrdiff_t>(task.head) * dims;
    const std::int64_t first_row = task.tile * p.tokens;
    SoftmaxTile tile(context.scratch(thread, SoftmaxTile::scratch_floats(rows, dims)), rows, 1,
                     dims);
    for (int row = 0; row < rows; ++row)
        set_query(tile, row, p.q.f32(first_row + task.first + row) + col, p.scale);
    tile.start();
    // Every row sees all keys.
    attend_keys(tile, p.tokens, DType::kF32, p.tokens, [&](std::int64_t i) {
        return std::pair<const void*, const void*>(p.k.f32(first_row + i) + col,
                                                   p.v.f32(first_row + i) + col);
    });
    for (int row = 0; row < rows; ++row) {
        float* HWY_RESTRICT out = p.out.f32(first_row + task.first + row) + col;
        unpack_row(tile.acc, rows, row, dims, out);
        const float factor = 1.0F / tile.sum[row];
        for (int i = 0; i < dims; ++i) out[i] *= factor;
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longview::kernels::cpu {
namespace {

HWY_EXPORT(attend_tile);

// Most queries of a task: packing the keys is then a small part of the arithmetic. 577 tokens make
// tasks of 150, whole groups of six rows.
constexpr std::int64_t kTaskRows = 192;
// Patches turned into rows in one piece of parallel_for.
constexpr std::int64_t kPatchesPerPiece = 32;

void check_patch_embed(const PatchEmbedParams& p) {
    LONGVIEW_CHECK(p.tile_size > 0 && p.patch_size > 0 && p.tile_size % p.patch_size == 0,
                   "a tile must be whole patches");
    const std::int64_t side = p.tile_size / p.patch_size;
    const std::int64_t patch_values = std::int64_t{3} * p.patch_size * p.patch_size;
    LONGVIEW_CHECK(p.weight.cols == patch_values && p.weight.rows == p.out.cols,
                   "the patch weight must be [hidden, 3 * patch * patch]");
    LONGVIEW_CHECK(p.out.rows == p.num_tiles * (side * side + 1) && p.out.dtype == DType::kF32,
                   "out must be [num_tiles * (patches + 1), hidden] in kF32");
    LONGVIEW_CHECK(p.tiles != nullptr && p.class_embedding != nullptr && p.positions != nullptr &&
                       p.gain != nullptr && p.bias != nullptr,
                   "pixels, embeddings and the norm's vectors are needed");
    LONGVIEW_CHECK(p.std[0] != 0.0F && p.std[1] != 0.0F && p.std[2] != 0.0F,
                   "a channel's std must not be 0");
}

/// What a pixel value becomes, by channel: (value / 255 - mean) / std.
using PixelTable = std::array<std::array<float, 256>, 3>;

PixelTable pixel_table(const PatchEmbedParams& p) {
    PixelTable table{};
    for (std::size_t channel = 0; channel < 3; ++channel)
        for (std::size_t value = 0; value < 256; ++value)
            table[channel][value] = static_cast<float>(
                (static_cast<double>(value) / 255.0 - static_cast<double>(p.mean[channel])) /
                static_cast<double>(p.std[channel]));
    return table;
}

/// The values of one patch in the order of the weight: channel, y, x.
void patch_row(const PatchEmbedParams& p, const PixelTable& table, std::int64_t tile,
               std::int64_t patch, float* out) {
    const std::int64_t side = p.tile_size / p.patch_size;
    const std::int64_t line = std::int64_t{3} * p.tile_size;
    const std::uint8_t* const corner = p.tiles + tile * p.tile_size * line +
                                       patch / side * p.patch_size * line +
                                       patch % side * p.patch_size * 3;
    for (std::size_t channel = 0; channel < 3; ++channel)
        for (int y = 0; y < p.patch_size; ++y)
            for (int x = 0; x < p.patch_size; ++x)
                *out++ = table[channel][corner[y * line + 3 * x + static_cast<int>(channel)]];
}

/// Adds the position embeddings to a tile's rows, the first of which is the class embedding.
void add_positions(Context& c, const PatchEmbedParams& p, Matrix rows) {
    c.pool.parallel_for(rows.rows, 64, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t row = begin; row < end; ++row) {
            float* const to = rows.f32(row);
            const float* const from = row == 0 ? p.class_embedding : to;
            const float* const position = p.positions + row * rows.cols;
            for (std::int64_t i = 0; i < rows.cols; ++i) to[i] = from[i] + position[i];
        }
    });
}

}  // namespace

void patch_embed(Context& c, const PatchEmbedParams& p) {
    if (p.num_tiles == 0) return;
    check_patch_embed(p);
    const std::int64_t side = p.tile_size / p.patch_size;
    const std::int64_t patches = side * side;
    const PixelTable table = pixel_table(p);
    const std::int64_t width = p.weight.cols;
    // Not from the context's scratch, which norm_linear takes for itself.
    const Buffer pixels = allocate_host(static_cast<std::size_t>(patches * width) * sizeof(float));
    for (std::int64_t tile = 0; tile < p.num_tiles; ++tile) {
        c.pool.parallel_for(
            patches, kPatchesPerPiece, [&](std::int64_t begin, std::int64_t end, int) {
                for (std::int64_t patch = begin; patch < end; ++patch)
                    patch_row(p, table, tile, patch, pixels.as<float>() + patch * width);
            });
        const Matrix rows = p.out.slice(tile * (patches + 1), patches + 1);
        LinearOutput product;
        product.weight = p.weight;
        product.out = rows.slice(1, patches);
        NormLinearParams linear;
        linear.x = {pixels.data(), DType::kF32, patches, width, width};
        linear.outputs = {&product, 1};
        norm_linear(c, linear);
        add_positions(c, p, rows);
        layer_norm(c, rows, p.gain, p.bias, p.eps, rows);
    }
}

void vit_attention(Context& c, const VitAttentionParams& p) {
    if (p.q.rows == 0) return;
    LONGVIEW_CHECK(p.heads > 0 && p.q.cols % p.heads == 0, "q must be whole heads");
    LONGVIEW_CHECK(p.num_tiles > 0 && p.tokens > 0 && p.q.rows == p.num_tiles * p.tokens,
                   "q must be [num_tiles * tokens, heads * head_dim]");
    for (const ConstMatrix& m : {p.k, p.v, ConstMatrix(p.out)})
        LONGVIEW_CHECK(m.rows == p.q.rows && m.cols == p.q.cols && m.dtype == DType::kF32,
                       "k, v and out must have the shape of q, in kF32");
    LONGVIEW_CHECK(p.q.dtype == DType::kF32, "q must be in kF32");
    const std::int64_t parts = (p.tokens + kTaskRows - 1) / kTaskRows;
    const std::int64_t part_rows = ((p.tokens + parts - 1) / parts + 5) / 6 * 6;
    const auto run = HWY_DYNAMIC_DISPATCH(attend_tile);
    c.pool.parallel_for(
        p.num_tiles * p.heads * parts, 1, [&](std::int64_t begin, std::int64_t end, int thread) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t first = i % parts * part_rows;
                const std::int64_t last = std::min(first + part_rows, p.tokens);
                if (first >= last) continue;
                run(p, {i / parts / p.heads, static_cast<int>(i / parts % p.heads), first, last}, c,
                    thread);
            }
        });
}

}  // namespace longview::kernels::cpu
#endif  // HWY_ONCE

// The vision tower's own operators: tiles to patch embeddings, and attention inside a tile
// (model-spec 7.4, 7.5; Dosovitskiy et al. 2020, arXiv:2010.11929).
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/cuda/flash.cuh"
#include "kernels/cuda/ops.h"

namespace longview::kernels::cuda {
namespace {

// ---- attention

bool aligned(const ConstMatrix& m) {
    return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.stride % 8 == 0;
}

void check_vit_attention(const VitAttentionParams& p) {
    LONGVIEW_CHECK(p.heads > 0 && p.q.cols % p.heads == 0, "q must be whole heads");
    LONGVIEW_CHECK(p.num_tiles > 0 && p.tokens > 0 && p.q.rows == p.num_tiles * p.tokens,
                   "q must be [num_tiles * tokens, heads * head_dim]");
    for (const ConstMatrix& m : {p.q, p.k, p.v, ConstMatrix(p.out)})
        LONGVIEW_CHECK(m.rows == p.q.rows && m.cols == p.q.cols && m.dtype == DType::kBF16,
                       "q, k, v and out must have one shape, in kBF16");
    LONGVIEW_CHECK(p.scale > 0.0F, "the scale of scores must be positive");
    const std::int64_t row_blocks = (p.tokens + kFlashRows - 1) / kFlashRows;
    LONGVIEW_CHECK(p.tokens < std::numeric_limits<std::int32_t>::max() - kFlashRows &&
                       p.num_tiles * row_blocks < std::numeric_limits<std::int32_t>::max() &&
                       p.heads <= 65535,
                   "too many tiles or heads for one launch");
    const std::int64_t dims = p.q.cols / p.heads;
    if (dims != 32 && dims != 64)
        throw Error(Category::kUnsupported,
                    "the vision tower's attention supports heads of 32 or 64 dims, not " +
                        std::to_string(dims));
}

template <int kDim, bool kFast>
void launch_vit_attention(const Context& c, const VitAttentionParams& p) {
    FlashArgs args;
    args.q = static_cast<const bf16*>(p.q.data);
    args.q_stride = p.q.stride;
    args.out = static_cast<bf16*>(p.out.data);
    args.out_stride = p.out.stride;
    args.rows = static_cast<int>(p.tokens);
    args.keys = static_cast<int>(p.tokens);
    args.scale_log2 = p.scale * kLog2E;
    MatrixKv<kFast> source;
    source.k = static_cast<const bf16*>(p.k.data);
    source.v = static_cast<const bf16*>(p.v.data);
    source.k_stride = p.k.stride;
    source.v_stride = p.v.stride;
    source.tokens = p.tokens;
    launch_flash<kDim, false>(c, args, source, p.heads, p.num_tiles);
}

// ---- patches

constexpr int kThreads = 256;

struct PatchArgs {
    const std::uint8_t* tiles = nullptr;  // [tiles, size, size, 3]
    std::int64_t rows = 0;                // tiles * patches
    int side = 0;                         // patches a line
    int patch = 0;
    int width = 0;    // 3 * patch * patch
    int chunks = 0;   // of eight values a row, the last one filled up with zeros
    float factor[3];  // value * factor + offset
    float offset[3];
    bf16* out = nullptr;  // [rows, 8 * chunks], columns: channel, y, x
};

/// One chunk of eight columns a thread.
__global__ void __launch_bounds__(kThreads) patch_kernel(const __grid_constant__ PatchArgs args) {
    const std::int64_t index =
        static_cast<std::int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
    const std::int64_t row = index / args.chunks;
    if (row >= args.rows) return;
    const int first = static_cast<int>(index - row * args.chunks) * 8;
    const int patches = args.side * args.side;
    const std::int64_t tile = row / patches;
    const int patch = static_cast<int>(row - tile * patches);
    const std::int64_t line = std::int64_t{3} * args.side * args.patch;  // bytes
    const std::uint8_t* const corner =
        args.tiles +
        (tile * args.side + patch / args.side) * args.patch * line +  // a tile has side bands
        static_cast<std::int64_t>(patch % args.side) * args.patch * 3;
    const int area = args.patch * args.patch;
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int column = first + i;
        const int channel = column / area;
        const int y = column % area / args.patch;
        const int x = column % args.patch;  // area is whole lines
        values[i] = 0.0F;
        if (column < args.width)
            values[i] = fmaf(static_cast<float>(corner[y * line + 3 * x + channel]),
                             channel == 0   ? args.factor[0]
                             : channel == 1 ? args.factor[1]
                                            : args.factor[2],
                             channel == 0   ? args.offset[0]
                             : channel == 1 ? args.offset[1]
                                            : args.offset[2]);
    }
    store8(args.out + index * 8, pack8(values));
}

/// to[r, i] = from[r, i] as bf16, zeros from `cols` to `stride`.
template <class From>
__global__ void __launch_bounds__(kThreads)
    pad_rows_kernel(const From* from, std::int64_t count, int cols, int stride, bf16* to) {
    const std::int64_t index =
        static_cast<std::int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
    if (index >= count) return;
    const std::int64_t row = index / stride;
    const int col = static_cast<int>(index - row * stride);
    to[index] = __float2bfloat16(col < cols ? static_cast<float>(from[row * cols + col]) : 0.0F);
}

struct FirstStateArgs {
    const bf16* product = nullptr;  // [tiles * patches, product_stride]
    std::int64_t product_stride = 0;
    const float* class_embedding = nullptr;
    const float* positions = nullptr;
    const float* gain = nullptr;
    const float* bias = nullptr;
    float eps = 0.0F;
    int hidden = 0;
    int patches = 0;
    bf16* out = nullptr;
    std::int64_t out_stride = 0;
};

/// LayerNorm(embedding + position), a block for each row; the row stays in shared memory.
__global__ void __launch_bounds__(kThreads)
    first_state_kernel(const __grid_constant__ FirstStateArgs args) {
    extern __shared__ float values[];
    __shared__ float reduction[kWarp];
    const auto row = static_cast<std::int64_t>(blockIdx.x);
    const std::int64_t tile = row / (args.patches + 1);
    const auto token = static_cast<int>(row - tile * (args.patches + 1));
    const bf16* const product =
        args.product + (tile * args.patches + token - 1) * args.product_stride;
    const float* const position = args.positions + static_cast<std::int64_t>(token) * args.hidden;
    const auto thread = static_cast<int>(threadIdx.x);
    float sum = 0.0F;
    for (int i = thread; i < args.hidden; i += kThreads) {
        const float x =
            (token == 0 ? args.class_embedding[i] : __bfloat162float(product[i])) + position[i];
        values[i] = x;
        sum += x;
    }
    const float mean = block_sum(sum, reduction) / static_cast<float>(args.hidden);
    float squares = 0.0F;
    for (int i = thread; i < args.hidden; i += kThreads) {
        const float x = values[i] - mean;
        squares = fmaf(x, x, squares);
    }
    const float variance = block_sum(squares, reduction) / static_cast<float>(args.hidden);
    const float scale = 1.0F / sqrtf(variance + args.eps);
    bf16* const out = args.out + row * args.out_stride;
    for (int i = thread; i < args.hidden; i += kThreads)
        out[i] = __float2bfloat16(fmaf((values[i] - mean) * scale, args.gain[i], args.bias[i]));
}

void check_patch_embed(const PatchEmbedParams& p) {
    LONGVIEW_CHECK(p.tile_size > 0 && p.patch_size > 0 && p.tile_size % p.patch_size == 0,
                   "a tile must be whole patches");
    const std::int64_t side = p.tile_size / p.patch_size;
    const std::int64_t patch_values = std::int64_t{3} * p.patch_size * p.patch_size;
    LONGVIEW_CHECK(p.weight.cols == patch_values && p.weight.rows == p.out.cols,
                   "the patch weight must be [hidden, 3 * patch * patch]");
    LONGVIEW_CHECK(p.out.rows == p.num_tiles * (side * side + 1) && p.out.dtype == DType::kBF16,
                   "out must be [num_tiles * (patches + 1), hidden] in kBF16");
    LONGVIEW_CHECK(p.tiles != nullptr && p.class_embedding != nullptr && p.positions != nullptr &&
                       p.gain != nullptr && p.bias != nullptr,
                   "pixels, embeddings and the norm's vectors are needed");
    LONGVIEW_CHECK(p.std[0] != 0.0F && p.std[1] != 0.0F && p.std[2] != 0.0F,
                   "a channel's std must not be 0");
    LONGVIEW_CHECK(p.tile_size <= 16384 && p.out.cols <= 12000 &&
                       p.out.rows <= std::numeric_limits<std::int32_t>::max(),
                   "tiles up to 16384 pixels, hidden sizes up to 12000");
}

std::int64_t blocks(std::int64_t threads) {
    return (threads + kThreads - 1) / kThreads;
}

/// The patches as rows of a matrix, (value / 255 - mean) / std.
ConstMatrix patch_rows(const Context& c, const PatchEmbedParams& p, std::int64_t stride) {
    PatchArgs args;
    args.tiles = p.tiles;
    args.side = p.tile_size / p.patch_size;
    args.patch = p.patch_size;
    args.rows = p.num_tiles * args.side * args.side;
    args.width = static_cast<int>(p.weight.cols);
    args.chunks = static_cast<int>(stride / 8);
    for (int i = 0; i < 3; ++i) {
        args.factor[i] = static_cast<float>(1.0 / (255.0 * static_cast<double>(p.std[i])));
        args.offset[i] =
            static_cast<float>(-static_cast<double>(p.mean[i]) / static_cast<double>(p.std[i]));
    }
    args.out = c.scratch->take_array<bf16>(args.rows * stride);
    const std::int64_t grid = blocks(args.rows * args.chunks);
    patch_kernel<<<static_cast<unsigned>(grid), kThreads, 0, c.stream>>>(args);
    check_launch("patch_kernel");
    return {args.out, DType::kBF16, args.rows, stride, stride};
}

/// The weight with rows of whole 16 bytes: 3 * 14 * 14 is not a multiple of eight.
WeightView padded_weight(const Context& c, const WeightView& weight, std::int64_t stride) {
    if (weight.dtype == DType::kBF16 && weight.cols == stride) return weight;
    const std::int64_t count = weight.rows * stride;
    bf16* const to = c.scratch->take_array<bf16>(count);
    const auto run = [&](const auto* from) {
        pad_rows_kernel<<<static_cast<unsigned>(blocks(count)), kThreads, 0, c.stream>>>(
            from, count, static_cast<int>(weight.cols), static_cast<int>(stride), to);
    };
    if (weight.dtype == DType::kBF16) {
        run(static_cast<const bf16*>(weight.data));
    } else if (weight.dtype == DType::kF16) {
        run(static_cast<const __half*>(weight.data));
    } else {
        run(static_cast<const float*>(weight.data));
    }
    check_launch("pad_rows_kernel");
    return {to, DType::kBF16, weight.rows, stride};
}

}  // namespace

void patch_embed(const Context& c, const PatchEmbedParams& p) {
    if (p.num_tiles == 0) return;
    check_patch_embed(p);
    const std::int64_t hidden = p.out.cols;
    const std::int64_t stride = (p.weight.cols + 7) / 8 * 8;
    const std::int64_t product_stride = (hidden + 7) / 8 * 8;
    NormLinearParams linear;
    linear.x = patch_rows(c, p, stride);
    LinearOutput product;
    product.weight = padded_weight(c, p.weight, stride);
    product.out = {c.scratch->take_array<bf16>(linear.x.rows * product_stride), DType::kBF16,
                   linear.x.rows, hidden, product_stride};
    linear.outputs = {&product, 1};
    norm_linear(c, linear);

    FirstStateArgs args;
    args.product = static_cast<const bf16*>(product.out.data);
    args.product_stride = product_stride;
    args.class_embedding = p.class_embedding;
    args.positions = p.positions;
    args.gain = p.gain;
    args.bias = p.bias;
    args.eps = p.eps;
    args.hidden = static_cast<int>(hidden);
    args.patches = static_cast<int>(linear.x.rows / p.num_tiles);
    args.out = static_cast<bf16*>(p.out.data);
    args.out_stride = p.out.stride;
    first_state_kernel<<<static_cast<unsigned>(p.out.rows), kThreads,
                         static_cast<std::size_t>(hidden) * sizeof(float), c.stream>>>(args);
    check_launch("first_state_kernel");
}

void vit_attention(const Context& c, const VitAttentionParams& p) {
    if (p.q.rows == 0) return;
    check_vit_attention(p);
    const bool fast = aligned(p.k) && aligned(p.v);
    if (p.q.cols / p.heads == 64) {
        fast ? launch_vit_attention<64, true>(c, p) : launch_vit_attention<64, false>(c, p);
    } else {
        fast ? launch_vit_attention<32, true>(c, p) : launch_vit_attention<32, false>(c, p);
    }
}

}  // namespace longview::kernels::cuda

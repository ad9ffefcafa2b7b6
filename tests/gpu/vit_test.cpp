// The vision tower's operators against the CPU backend, which computes in fp32 on the same bf16
// values. Bounds: attention as in attention_test; the patch embedding rounds pixels, the product
// and the result to bf16, some 2e-3 of the norm together.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/gpu/device_rows.h"
#include "tests/gpu/gpu_test.h"

using namespace longview;
using namespace longview::gpu_test;
using namespace longview::kernels;

namespace {

constexpr double kBound = 5e-3;

Matrix host_matrix(std::vector<float>& values, std::int64_t rows) {
    const auto cols = static_cast<std::int64_t>(values.size()) / rows;
    return {values.data(), DType::kF32, rows, cols, cols};
}

struct Attention {
    std::int64_t tiles;
    std::int64_t tokens;
    int heads;
    int dim;
    float size = 1.0F;
    std::int64_t gap = 0;
    std::size_t shift_bytes = 0;
};

void check_attention(Device& device, const Attention& a) {
    Random random(static_cast<std::uint64_t>(a.tokens * 100 + a.dim));
    const std::int64_t rows = a.tiles * a.tokens;
    const std::int64_t width = std::int64_t{a.heads} * a.dim;
    std::vector<float> q = random.normals_bf16(rows * width, a.size);
    std::vector<float> k = random.normals_bf16(rows * width, a.size);
    std::vector<float> v = random.normals_bf16(rows * width);
    // Side by side in one matrix, as a fused projection leaves them.
    std::vector<float> qkv;
    for (std::int64_t r = 0; r < rows; ++r)
        for (const auto* part : {&q, &k, &v})
            qkv.insert(qkv.end(), part->begin() + r * width, part->begin() + (r + 1) * width);
    const DeviceRows in(rows, 3 * width, qkv, a.gap, a.shift_bytes);
    const DeviceRows out(rows, width, a.gap, a.shift_bytes);
    VitAttentionParams p;
    p.q = in.columns(0, width);
    p.k = in.columns(width, width);
    p.v = in.columns(2 * width, width);
    p.num_tiles = a.tiles;
    p.tokens = a.tokens;
    p.heads = a.heads;
    p.scale = 1.0F / std::sqrt(static_cast<float>(a.dim));
    p.out = out.view();
    cuda::vit_attention(device.context(), p);
    device.finish();

    std::vector<float> want(static_cast<std::size_t>(rows * width));
    p.q = host_matrix(q, rows);
    p.k = host_matrix(k, rows);
    p.v = host_matrix(v, rows);
    p.out = host_matrix(want, rows);
    device.cpu().vit_attention(p);
    expect_close(std::to_string(a.tiles) + " tiles of " + std::to_string(a.tokens), out.read(),
                 want, kBound);
    expect(in.read() == qkv, "inputs were changed");
}

struct Picture {
    std::int64_t tiles;
    int tile_size;
    int patch;
    std::int64_t hidden;
    DType weight = DType::kBF16;
    std::int64_t gap = 0;
    std::size_t shift_bytes = 0;
};

void check_patch_embed(Device& device, const Picture& picture) {
    Random random(static_cast<std::uint64_t>(picture.tile_size + picture.hidden));
    const std::int64_t side = picture.tile_size / picture.patch;
    const std::int64_t rows = picture.tiles * (side * side + 1);
    const std::int64_t patch_values = std::int64_t{3} * picture.patch * picture.patch;
    std::vector<std::uint8_t> pixels(
        static_cast<std::size_t>(picture.tiles * picture.tile_size * picture.tile_size * 3));
    for (std::uint8_t& x : pixels) x = static_cast<std::uint8_t>(random.next() >> 32);
    const std::vector<float> weight = random.normals_bf16(picture.hidden * patch_values, 0.04F);
    const std::vector<float> class_embedding = random.normals(picture.hidden);
    const std::vector<float> positions = random.normals((side * side + 1) * picture.hidden);
    const std::vector<float> gain = random.normals(picture.hidden);
    const std::vector<float> bias = random.normals(picture.hidden);

    DeviceMemory device_pixels(pixels.size(), picture.shift_bytes);
    device_pixels.write(pixels.data(), pixels.size());
    const DeviceMemory device_weight = picture.weight == DType::kBF16
                                           ? upload_bf16(weight, picture.shift_bytes)
                                           : upload_f32(weight);
    const DeviceMemory device_class = upload_f32(class_embedding);
    const DeviceMemory device_positions = upload_f32(positions);
    const DeviceMemory device_gain = upload_f32(gain);
    const DeviceMemory device_bias = upload_f32(bias);
    const DeviceRows out(rows, picture.hidden, picture.gap, picture.shift_bytes);
    PatchEmbedParams p;
    p.tiles = device_pixels.as<std::uint8_t>();
    p.num_tiles = picture.tiles;
    p.tile_size = picture.tile_size;
    p.patch_size = picture.patch;
    const float mean[3] = {0.48145466F, 0.4578275F, 0.40821073F};
    const float deviation[3] = {0.26862954F, 0.26130258F, 0.27577711F};
    std::copy_n(mean, 3, p.mean);
    std::copy_n(deviation, 3, p.std);
    p.weight = {device_weight.as<void>(), picture.weight, picture.hidden, patch_values};
    p.class_embedding = device_class.as<float>();
    p.positions = device_positions.as<float>();
    p.gain = device_gain.as<float>();
    p.bias = device_bias.as<float>();
    p.eps = 1e-5F;
    p.out = out.view();
    cuda::patch_embed(device.context(), p);
    device.finish();

    std::vector<float> want(static_cast<std::size_t>(rows * picture.hidden));
    p.tiles = pixels.data();
    p.weight = {weight.data(), DType::kF32, picture.hidden, patch_values};
    p.class_embedding = class_embedding.data();
    p.positions = positions.data();
    p.gain = gain.data();
    p.bias = bias.data();
    p.out = host_matrix(want, rows);
    device.cpu().patch_embed(p);
    expect_close("patch embedding", out.read(), want, kBound);
    device_pixels.check_guards();
    device_weight.check_guards();
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<Case> cases;
    for (const auto& [heads, dim] : {std::pair{16, 64}, std::pair{4, 32}, std::pair{4, 64}})
        for (const std::int64_t tokens : {577, 50, 5, 1, 64, 128, 129})
            cases.push_back({"vit attention " + std::to_string(heads) + "x" + std::to_string(dim) +
                                 " tokens " + std::to_string(tokens),
                             [=, heads = heads, dim = dim](Device& d) {
                                 for (const std::int64_t tiles : {1, 3})
                                     check_attention(d, {tiles, tokens, heads, dim});
                             }});
    cases.push_back({"vit attention with large logits", [](Device& d) {
                         check_attention(d, {2, 577, 4, 64, 8.0F});
                         check_attention(d, {2, 50, 4, 32, 8.0F});
                     }});
    cases.push_back({"vit attention without alignment", [](Device& d) {
                         check_attention(d, {2, 70, 4, 64, 1.0F, 3, 2});
                         check_attention(d, {2, 70, 4, 32, 1.0F, 0, 6});
                         check_attention(d, {2, 70, 4, 32, 1.0F, 1, 0});
                     }});
    cases.push_back({"patch embedding 336/14", [](Device& d) {
                         check_patch_embed(d, {1, 336, 14, 1024});
                     }});
    cases.push_back({"patch embedding 56/14", [](Device& d) {
                         check_patch_embed(d, {3, 56, 14, 64});
                     }});
    cases.push_back({"patch embedding with other patches", [](Device& d) {
                         check_patch_embed(d, {2, 32, 16, 128});
                         check_patch_embed(d, {2, 15, 3, 24});
                     }});
    cases.push_back({"patch embedding without alignment", [](Device& d) {
                         check_patch_embed(d, {3, 56, 14, 64, DType::kBF16, 1, 2});
                         check_patch_embed(d, {1, 28, 14, 30, DType::kBF16, 0, 6});
                     }});
    cases.push_back({"patch embedding with a weight of floats", [](Device& d) {
                         check_patch_embed(d, {2, 28, 14, 64, DType::kF32});
                     }});
    cases.push_back({"vision of zero tiles", [](Device& d) {
                         cuda::vit_attention(d.context(), VitAttentionParams{});
                         cuda::patch_embed(d.context(), PatchEmbedParams{});
                         d.finish();
                     }});
    return run_cases(argc, argv, cases);
}

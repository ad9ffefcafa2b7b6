// Attention of the vision tower at the demo model's and MiniMax-VL-01's sizes, and patch
// embedding.
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/bench/bench.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/thread_pool.h"

using namespace longview;
using namespace longview::kernels;

namespace {

struct Tower {
    const char* name;
    int tile_size;
    int hidden;
    int heads;
};

constexpr int kPatch = 14;
constexpr Tower kDemo = {"demo", 168, 256, 4};
constexpr Tower kReal = {"real", 336, 1024, 16};

std::int64_t tokens_of(const Tower& tower) {
    const std::int64_t side = tower.tile_size / kPatch;
    return side * side + 1;
}

void measure_attention(bench::Report& report, ThreadPool& pool, const Tower& tower,
                       std::int64_t tiles) {
    cpu::Context context(pool);
    const std::int64_t tokens = tokens_of(tower);
    const std::int64_t rows = tiles * tokens;
    const std::int64_t width = tower.hidden;
    const Buffer q = bench::random_values(rows * width, DType::kF32, 1);
    const Buffer k = bench::random_values(rows * width, DType::kF32, 2);
    const Buffer v = bench::random_values(rows * width, DType::kF32, 3);
    const Buffer out = allocate_host(static_cast<std::size_t>(rows * width) * sizeof(float));
    VitAttentionParams p;
    p.q = {q.data(), DType::kF32, rows, width, width};
    p.k = {k.data(), DType::kF32, rows, width, width};
    p.v = {v.data(), DType::kF32, rows, width, width};
    p.num_tiles = tiles;
    p.tokens = tokens;
    p.heads = tower.heads;
    p.scale = 0.125F;
    p.out = {out.data(), DType::kF32, rows, width, width};
    bench::Report::Row row;
    row.name = "vit_attention";
    row.shape = std::string(tower.name) + " tiles=" + std::to_string(tiles);
    row.threads = pool.size();
    row.seconds = bench::median_seconds([&] { cpu::vit_attention(context, p); });
    row.flops = 4.0 * static_cast<double>(rows * width * tokens);
    report.add(row);
}

void measure_patches(bench::Report& report, ThreadPool& pool, const Tower& tower) {
    cpu::Context context(pool);
    const std::int64_t tokens = tokens_of(tower);
    const std::int64_t patch_values = std::int64_t{3} * kPatch * kPatch;
    const std::vector<std::uint8_t> pixels(
        static_cast<std::size_t>(tower.tile_size) * static_cast<std::size_t>(tower.tile_size) * 3,
        100);
    const Buffer weight = bench::random_values(tower.hidden * patch_values, DType::kBF16);
    const Buffer positions = bench::random_values(tokens * tower.hidden, DType::kF32, 2);
    const Buffer out =
        allocate_host(static_cast<std::size_t>(tokens * tower.hidden) * sizeof(float));
    PatchEmbedParams p;
    p.tiles = pixels.data();
    p.num_tiles = 1;
    p.tile_size = tower.tile_size;
    p.patch_size = kPatch;
    for (float& deviation : p.std) deviation = 0.27F;
    p.weight = {weight.data(), DType::kBF16, tower.hidden, patch_values};
    p.class_embedding = p.positions = p.gain = p.bias = positions.as<float>();
    p.eps = 1e-5F;
    p.out = {out.data(), DType::kF32, tokens, tower.hidden, tower.hidden};
    bench::Report::Row row;
    row.name = "patch_embed";
    row.shape = std::string(tower.name) + " tiles=1";
    row.threads = pool.size();
    row.seconds = bench::median_seconds([&] { cpu::patch_embed(context, p); });
    row.flops = 2.0 * static_cast<double>((tokens - 1) * patch_values * tower.hidden);
    report.add(row);
}

}  // namespace

int main(int argc, char** argv) {
    bench::Report report(argc, argv);
    for (const int threads : {1, 0}) {
        ThreadPool pool(threads);
        for (const Tower& tower : {kDemo, kReal}) {
            measure_patches(report, pool, tower);
            for (const std::int64_t tiles : {1, 5}) measure_attention(report, pool, tower, tiles);
        }
    }
}

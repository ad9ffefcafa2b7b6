// Lightning attention at the demo model's and MiniMax-VL-01's sizes: prefill in long calls, and
// the decoding step, which streams the states of many layers through the caches.
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/bench/bench.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/thread_pool.h"

using namespace longview;
using namespace longview::kernels;

namespace {

struct Model {
    const char* name;
    int heads;
    int head_dim;
    int layers;  // lightning layers, each with its own state
};

constexpr Model kDemo = {"demo", 4, 64, 7};
constexpr Model kReal = {"real", 64, 128, 70};

void measure(bench::Report& report, ThreadPool& pool, const Model& model, std::int64_t rows) {
    cpu::Context context(pool);
    const std::int64_t width = std::int64_t{model.heads} * model.head_dim;
    const std::int64_t state_floats = width * model.head_dim;
    const Buffer qkv = bench::random_values(rows * 3 * width, DType::kF32);
    const Buffer out = allocate_host(static_cast<std::size_t>(rows * width) * sizeof(float));
    const Buffer states = bench::random_values(state_floats * model.layers, DType::kF32, 2);
    std::vector<float> slopes;
    for (int h = 0; h < model.heads; ++h)
        slopes.push_back(0.9170132F / static_cast<float>(1 << (h % 8)));
    LightningParams p;
    p.qkv = {qkv.data(), DType::kF32, rows, 3 * width, 3 * width};
    p.heads = model.heads;
    p.head_dim = model.head_dim;
    p.slopes = slopes.data();
    p.out = {out.data(), DType::kF32, rows, width, width};
    std::int64_t layer = 0;
    bench::Report::Row row;
    row.name = "lightning";
    row.shape = std::string(model.name) + " n=" + std::to_string(rows);
    row.threads = pool.size();
    row.seconds = bench::median_seconds([&] {
        p.state = states.as<float>() + layer * state_floats;
        layer = (layer + 1) % model.layers;
        cpu::lightning_attention(context, p);
    });
    // Per row and head: the state read and updated; in tiles also half a tile of scores.
    const double pairs = rows == 1 ? 0.0 : static_cast<double>(kLightningTile + 1) / 2.0;
    row.flops = 4.0 * static_cast<double>(rows * width) * (model.head_dim + pairs);
    row.bytes = sizeof(float) * static_cast<double>(rows * 4 * width + 2 * state_floats);
    report.add(row);
}

}  // namespace

int main(int argc, char** argv) {
    bench::Report report(argc, argv);
    for (const int threads : {1, 0}) {
        ThreadPool pool(threads);
        for (const Model& model : {kDemo, kReal})
            for (const std::int64_t rows : {1, 64, 512, 2048}) measure(report, pool, model, rows);
    }
}

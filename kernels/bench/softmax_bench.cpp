// Softmax attention and the rotary embedding at the demo model's and MiniMax-VL-01's sizes:
// prefill from an empty cache, a chunk over a long cache, and decoding over it.
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
    int kv_heads;
    int head_dim;
    int rotary_dim;
};

constexpr Model kDemo = {"demo", 4, 2, 64, 32};
constexpr Model kReal = {"real", 64, 8, 128, 64};
constexpr std::int64_t kPageTokens = 256;

/// Pages of one layer, all in one block.
struct Cache {
    Buffer memory;
    std::vector<void*> pages;
    KvView view;

    Cache(const Model& model, std::int64_t positions, DType dtype) {
        const std::int64_t count = (positions + kPageTokens - 1) / kPageTokens;
        const std::int64_t page_values = 2 * kPageTokens * model.kv_heads * model.head_dim;
        memory = bench::random_values(count * page_values, dtype, 3);
        for (std::int64_t i = 0; i < count; ++i)
            pages.push_back(memory.as<std::byte>() +
                            i * page_values * static_cast<std::int64_t>(size_of(dtype)));
        view = {pages.data(), kPageTokens, 0, dtype, model.kv_heads, model.head_dim};
    }
};

struct Case {
    std::int64_t rows;
    std::int64_t position;
    DType dtype;
};

void measure(bench::Report& report, ThreadPool& pool, const Model& model, const Case& c) {
    cpu::Context context(pool);
    const std::int64_t width = std::int64_t{model.heads} * model.head_dim;
    const std::int64_t kv_width = std::int64_t{model.kv_heads} * model.head_dim;
    const Buffer q = bench::random_values(c.rows * width, DType::kF32);
    const Buffer kv = bench::random_values(c.rows * kv_width, DType::kF32, 2);
    const Buffer out = allocate_host(static_cast<std::size_t>(c.rows * width) * sizeof(float));
    const Cache cache(model, c.position + c.rows, c.dtype);
    const std::string shape = std::string(model.name) + " n=" + std::to_string(c.rows) +
                              " at=" + std::to_string(c.position) + " " + dtype_name(c.dtype);

    RopeAppendParams rope;
    rope.q = {q.data(), DType::kF32, c.rows, width, width};
    rope.k = {kv.data(), DType::kF32, c.rows, kv_width, kv_width};
    rope.v = rope.k;
    rope.heads = model.heads;
    rope.rotary_dim = model.rotary_dim;
    rope.theta = 1e7;
    rope.position = c.position;
    rope.kv = cache.view;
    bench::Report::Row row;
    row.shape = shape;
    row.threads = pool.size();
    row.name = "rope_append";
    row.seconds = bench::median_seconds([&] { cpu::rope_append(context, rope); }, 0.1);
    row.bytes = static_cast<double>(c.rows) * (8.0 * static_cast<double>(width) +
                                               2.0 * static_cast<double>(kv_width) *
                                                   (4.0 + static_cast<double>(size_of(c.dtype))));
    report.add(row);

    SoftmaxAttentionParams p;
    p.q = rope.q;
    p.heads = model.heads;
    p.scale = 0.0883883F;
    p.position = c.position;
    p.kv = cache.view;
    p.out = {out.data(), DType::kF32, c.rows, width, width};
    row.name = "softmax";
    row.seconds = bench::median_seconds([&] { cpu::softmax_attention(context, p); });
    const double keys = static_cast<double>(c.position) + (static_cast<double>(c.rows) + 1.0) / 2.0;
    row.flops = 4.0 * static_cast<double>(c.rows * width) * keys;
    row.bytes = 2.0 * static_cast<double>((c.position + c.rows) * kv_width) *
                static_cast<double>(size_of(c.dtype));
    report.add(row);
}

}  // namespace

int main(int argc, char** argv) {
    bench::Report report(argc, argv);
    for (const int threads : {1, 0}) {
        ThreadPool pool(threads);
        for (const Case& c : {Case{1, 255, DType::kF32}, Case{1, 8191, DType::kF32},
                              Case{512, 0, DType::kF32}, Case{2048, 0, DType::kF32}})
            measure(report, pool, kDemo, c);
        for (const Case& c :
             {Case{1, 4095, DType::kF32}, Case{1, 32767, DType::kF32}, Case{1, 32767, DType::kBF16},
              Case{512, 0, DType::kF32}, Case{128, 8192, DType::kBF16}})
            measure(report, pool, kReal, c);
    }
}

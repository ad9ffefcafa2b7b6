// Routing, experts and sampling at the demo model's and the real model's sizes.
//   experts_bench [--json] [--threads N]
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/bench/bench.h"
#include "kernels/cpu/ops.h"

namespace {

using namespace longview;
using namespace longview::bench;
using namespace longview::kernels;

constexpr int kTopK = 2;

struct Model {
    std::int64_t hidden, inner;
    int experts;
};

std::string shape_of(std::int64_t rows, const Model& m) {
    return std::string("n=") + std::to_string(rows) + " hidden=" + std::to_string(m.hidden) +
           " inner=" + std::to_string(m.inner) + " experts=" + std::to_string(m.experts);
}

struct Layer {
    std::vector<Buffer> buffers;
    std::vector<ExpertWeights> experts;

    explicit Layer(const Model& m) {
        for (int e = 0; e < m.experts; ++e) {
            const auto weight = [&](std::int64_t rows, std::int64_t cols) {
                buffers.push_back(random_values(rows * cols, DType::kBF16, buffers.size() + 1));
                return WeightView{buffers.back().data(), DType::kBF16, rows, cols};
            };
            ExpertWeights w;
            w.w1 = weight(m.inner, m.hidden);
            w.w3 = weight(m.inner, m.hidden);
            w.w2 = weight(m.hidden, m.inner);
            experts.push_back(w);
        }
    }
};

// Every call routes differently, as tokens do: at one row, two experts of all.
void measure_experts(Report& report, cpu::Context& c, const Model& m, const Layer& layer,
                     std::int64_t rows) {
    const Buffer x = random_values(rows * m.hidden, DType::kF32, 91);
    const Buffer out = allocate_host(x.size_bytes());
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * kTopK));
    const std::vector<float> weights(ids.size(), 0.5F);
    std::int32_t turn = 0;
    const double seconds = median_seconds([&] {
        for (std::size_t i = 0; i < ids.size(); i += kTopK) {
            const std::int32_t first = turn++ % m.experts;
            ids[i] = first;
            ids[i + 1] = (first + 1 + turn / m.experts % (m.experts - 1)) % m.experts;
        }
        ExpertsParams p;
        p.x = {x.data(), DType::kF32, rows, m.hidden, m.hidden};
        p.top_k = kTopK;
        p.ids = ids.data();
        p.weights = weights.data();
        p.experts = layer.experts;
        p.out = {out.data(), DType::kF32, rows, m.hidden, m.hidden};
        cpu::experts(c, p);
    });
    const double each = 3.0 * static_cast<double>(m.hidden * m.inner);
    const double read = static_cast<double>(std::min<std::int64_t>(m.experts, rows * kTopK));
    report.add({"experts", shape_of(rows, m), c.pool.size(), seconds, 2.0 * each * read,
                2.0 * each * static_cast<double>(rows * kTopK)});
}

void measure_route(Report& report, cpu::Context& c, const Model& m, std::int64_t rows) {
    const Buffer x = random_values(rows * m.hidden, DType::kF32, 1);
    const Buffer normed = allocate_host(x.size_bytes());
    const Buffer gain = random_values(m.hidden, DType::kF32, 2);
    const Buffer gate = random_values(m.experts * m.hidden, DType::kF32, 3);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * kTopK));
    std::vector<float> weights(ids.size());
    RouteParams p;
    p.x = {x.data(), DType::kF32, rows, m.hidden, m.hidden};
    p.gain = gain.as<float>();
    p.eps = 1e-5F;
    p.normed = {normed.data(), DType::kF32, rows, m.hidden, m.hidden};
    p.gate = {gate.data(), DType::kF32, m.experts, m.hidden};
    p.top_k = kTopK;
    p.ids = ids.data();
    p.weights = weights.data();
    const double seconds = median_seconds([&] { cpu::route(c, p); });
    report.add({"route", shape_of(rows, m), c.pool.size(), seconds,
                static_cast<double>(gate.size_bytes() + 2 * x.size_bytes()),
                2.0 * static_cast<double>(rows * m.hidden * m.experts)});
}

void measure_sample(Report& report, cpu::Context& c, const std::string& name,
                    const SampleParams& settings) {
    const Buffer logits = random_values(settings.vocab, DType::kF32, 4);
    for (std::int64_t i = 0; i < settings.vocab; ++i) logits.as<float>()[i] *= 8.0F;
    SampleParams p = settings;
    p.logits = logits.as<float>();
    const double seconds = median_seconds([&] {
        cpu::sample(c, p);
        ++p.step;
    });
    // append, because gcc 12 warns wrongly (PR105651) about a literal + string here.
    const std::string shape =
        std::string("vocab=").append(std::to_string(p.vocab)).append(" ").append(name);
    report.add({"sample", shape, c.pool.size(), seconds, static_cast<double>(p.vocab * 4), 0.0});
}

void measure_samples(Report& report, cpu::Context& c) {
    for (const std::int64_t vocab : {2048, 200064}) {
        SampleParams p;
        p.vocab = vocab;
        measure_sample(report, c, "greedy", p);
        p.temperature = 0.9F;
        measure_sample(report, c, "open", p);
        p.top_p = 0.95F;
        measure_sample(report, c, "top_p=0.95", p);
        p.top_k = 40;
        measure_sample(report, c, "top_k=40 top_p=0.95", p);
    }
}

}  // namespace

int main(int argc, char** argv) {
    Report report(argc, argv);
    std::vector<int> thread_counts = {1, 2};
    for (int i = 1; i + 1 < argc; ++i)
        if (std::string(argv[i]) == "--threads") thread_counts = {std::atoi(argv[i + 1])};
    const Model demo = {256, 384, 4};
    const Model real = {6144, 9216, 3};  // three of the 32 experts, 1 GB
    const Layer demo_layer(demo), real_layer(real);
    for (const int threads : thread_counts) {
        ThreadPool pool(threads);
        cpu::Context context(pool);
        for (const std::int64_t rows : {1, 4, 64, 512, 2048}) {
            measure_route(report, context, demo, rows);
            measure_experts(report, context, demo, demo_layer, rows);
        }
        measure_route(report, context, {6144, 9216, 32}, 1);
        measure_experts(report, context, real, real_layer, 1);
        if (threads == 1) measure_samples(report, context);  // samples on one thread anyway
    }
    return 0;
}

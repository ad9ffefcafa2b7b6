// Linear layers at the demo model's and the real model's sizes. See bench.h for the method.
//   linear_bench [--json] [--threads N]
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "kernels/bench/bench.h"
#include "kernels/cpu/ops.h"

namespace {

using namespace longview;
using namespace longview::bench;
using namespace longview::kernels;

struct Shape {
    std::int64_t m, k, n;
    DType dtype;
};

// A decode step meets each matrix once, so at one row the matrices rotate beyond the caches where
// the whole model would not fit in them (k = 6144); the demo model's 13 MB do fit in most.
void measure(Report& report, cpu::Context& c, const Shape& s) {
    const std::size_t bytes = static_cast<std::size_t>(s.n * s.k) * size_of(s.dtype);
    const std::int64_t copies = s.k < 1024 ? 24 : s.m < 64 ? cold_copies(bytes) : 1;
    std::vector<Buffer> weights;
    for (std::int64_t i = 0; i < copies; ++i)
        weights.push_back(random_values(s.n * s.k, s.dtype, static_cast<std::uint64_t>(i) + 1));
    const Buffer x = random_values(s.m * s.k, DType::kF32, 77);
    const Buffer out = allocate_host(static_cast<std::size_t>(s.m * s.n) * sizeof(float));
    std::size_t next = 0;
    const double seconds = median_seconds([&] {
        LinearOutput o;
        o.weight = {weights[next].data(), s.dtype, s.n, s.k};
        o.out = {out.data(), DType::kF32, s.m, s.n, s.n};
        NormLinearParams p;
        p.x = {x.data(), DType::kF32, s.m, s.k, s.k};
        p.outputs = {&o, 1};
        cpu::norm_linear(c, p);
        next = (next + 1) % weights.size();
    });
    const double moved = static_cast<double>(bytes) + static_cast<double>(s.m * (s.k + s.n) * 4);
    report.add({"linear",
                "m=" + std::to_string(s.m) + " k=" + std::to_string(s.k) +
                    " n=" + std::to_string(s.n) + " " + dtype_name(s.dtype),
                c.pool.size(), seconds, moved, 2.0 * static_cast<double>(s.m * s.n * s.k)});
}

// A decode step's norm and query, key, value and gate projections in one operator.
void measure_projections(Report& report, cpu::Context& c) {
    constexpr std::int64_t kIn = 256;
    const std::int64_t sizes[] = {768, 256};
    const Activation activations[] = {Activation::kSilu, Activation::kSigmoid};
    const Buffer x = random_values(kIn, DType::kF32, 5), gain = random_values(kIn, DType::kF32, 6);
    const Buffer normed = random_values(kIn, DType::kF32, 7);
    std::vector<Buffer> weights, outs;
    std::vector<LinearOutput> outputs(2);
    for (std::size_t i = 0; i < 2; ++i) {
        weights.push_back(random_values(sizes[i] * kIn, DType::kBF16, i + 1));
        outs.push_back(random_values(sizes[i], DType::kF32, i + 3));
        outputs[i].weight = {weights[i].data(), DType::kBF16, sizes[i], kIn};
        outputs[i].activation = activations[i];
        outputs[i].out = {outs[i].data(), DType::kF32, 1, sizes[i], sizes[i]};
    }
    NormLinearParams p;
    p.x = {x.data(), DType::kF32, 1, kIn, kIn};
    p.norm = Norm::kRms;
    p.gain = gain.as<float>();
    p.eps = 1e-5F;
    p.normed = {normed.data(), DType::kF32, 1, kIn, kIn};
    p.outputs = outputs;
    const double seconds = median_seconds([&] { cpu::norm_linear(c, p); });
    report.add({"norm_linear", "m=1 k=256 n=768+256 BF16", c.pool.size(), seconds, 1024.0 * kIn * 2,
                2.0 * 1024 * kIn});
}

}  // namespace

int main(int argc, char** argv) {
    Report report(argc, argv);
    std::vector<int> thread_counts = {1, 2};
    for (int i = 1; i + 1 < argc; ++i)
        if (std::string(argv[i]) == "--threads") thread_counts = {std::atoi(argv[i + 1])};
    const DType b = DType::kBF16, f = DType::kF32, h = DType::kF16;
    const Shape shapes[] = {
        // The demo model: decode, short and long prefill, head; vision tower and projector.
        {1, 256, 768, b},
        {1, 256, 256, b},
        {1, 256, 2048, b},
        {4, 256, 768, b},
        {16, 256, 768, b},
        {64, 256, 768, b},
        {512, 256, 768, b},
        {512, 256, 256, b},
        {512, 768, 256, b},
        {2048, 256, 1024, b},
        {1450, 256, 256, f},
        // The real model: one matrix of 6144 x 6144 and the widest.
        {1, 6144, 6144, b},
        {1, 6144, 6144, h},
        {1, 6144, 6144, f},
        {4, 6144, 6144, b},
        {64, 6144, 6144, b},
        {512, 6144, 6144, b},
        {512, 6144, 6144, f},
        {1, 6144, 24576, b},
        {96, 24576, 1024, b}};
    for (const int threads : thread_counts) {
        ThreadPool pool(threads);
        cpu::Context context(pool);
        measure_projections(report, context);
        for (const Shape& shape : shapes) measure(report, context, shape);
    }
    return 0;
}

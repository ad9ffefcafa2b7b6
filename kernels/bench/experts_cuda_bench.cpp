// The router and the mixture of experts at the real model's sizes on a GPU.
//
//   experts_cuda_bench [--json FILE]
//
// Takes 11 GB for 32 experts.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <random>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/cuda_context.h"
#include "kernels/cuda/ops.h"

namespace longview::kernels::bench {
namespace {

constexpr std::int64_t kHidden = 6144;
constexpr std::int64_t kInner = 9216;
constexpr std::int64_t kExperts = 32;
constexpr int kTopK = 2;
constexpr std::int64_t kExpertValues = 3 * kHidden * kInner;

using Values = DeviceArray<std::uint16_t>;

Matrix rows_of(void* data, std::int64_t rows) {
    return {data, DType::kBF16, rows, kHidden, kHidden};
}

void bench_route(BenchContext& device, Report& report, std::int64_t n) {
    // Logits of one row take 786 KB of gates: a rotation of many layers' gates.
    const std::size_t bytes = kExperts * kHidden * sizeof(float);
    const int sets = rotation(bytes);
    DeviceArray<float> gates(static_cast<std::size_t>(sets) * kExperts * kHidden);
    fill_random_f32(gates.data(), gates.size(), 0.0128F, 1, device.stream());
    Values x(static_cast<std::size_t>(n * kHidden));
    fill_random_bf16(x.data(), x.size(), 1.0F, 2, device.stream());
    DeviceArray<float> gain(kHidden);
    fill_random_f32(gain.data(), gain.size(), 1.0F, 3, device.stream());
    const Values normed(x.size());
    const DeviceArray<std::int32_t> ids(static_cast<std::size_t>(n * kTopK));
    const DeviceArray<float> weights(static_cast<std::size_t>(n * kTopK));
    const auto work = [&](int i) {
        cuda::route(device.next(), {.x = rows_of(x.data(), n),
                                    .gain = gain.data(),
                                    .eps = 1e-5F,
                                    .normed = rows_of(normed.data(), n),
                                    .gate = {gates.data() + i % sets * kExperts * kHidden,
                                             DType::kF32, kExperts, kHidden},
                                    .top_k = kTopK,
                                    .ids = ids.data(),
                                    .weights = weights.data()});
    };
    const double seconds = median_seconds(device.stream(), work);
    report.add("route, n=" + std::to_string(n), seconds,
               static_cast<double>(bytes) + 4.0 * static_cast<double>(n * kHidden), 0.0);
}

struct Layer {
    explicit Layer(cudaStream_t stream) : values(kExperts * kExpertValues) {
        fill_random_bf16(values.data(), values.size(), 0.0128F, 7, stream);
        for (std::int64_t e = 0; e < kExperts; ++e) {
            const std::uint16_t* const w = values.data() + e * kExpertValues;
            experts.push_back({{w, DType::kBF16, kInner, kHidden},
                               {w + kHidden * kInner, DType::kBF16, kInner, kHidden},
                               {w + 2 * kHidden * kInner, DType::kBF16, kHidden, kInner}});
        }
    }
    Values values;
    std::vector<ExpertWeights> experts;
};

/// n rows; calls i = 0, 1, ... use other experts each.
void bench_experts(BenchContext& device, Report& report, const Layer& layer, std::int64_t n) {
    constexpr std::int64_t kSets = 16;
    const std::int64_t pairs = n * kTopK;
    std::mt19937 random(static_cast<unsigned>(n));
    std::vector<std::int32_t> host(static_cast<std::size_t>(kSets * pairs));
    for (std::int64_t set = 0; set < kSets; ++set) {
        for (std::int64_t row = 0; row < n; ++row) {
            const auto first = static_cast<std::int32_t>(
                n == 1 ? 2 * set : static_cast<std::int64_t>(random() % kExperts));
            const auto second = static_cast<std::int32_t>(
                n == 1 ? 2 * set + 1 : (first + 1 + random() % (kExperts - 1)) % kExperts);
            host[static_cast<std::size_t>(set * pairs + row * kTopK)] = first;
            host[static_cast<std::size_t>(set * pairs + row * kTopK + 1)] = second;
        }
    }
    DeviceArray<std::int32_t> ids(host.size());
    ids.write(host.data());
    DeviceArray<float> weights(static_cast<std::size_t>(pairs));
    const std::vector<float> half(weights.size(), 0.5F);
    weights.write(half.data());
    Values x(static_cast<std::size_t>(n * kHidden));
    fill_random_bf16(x.data(), x.size(), 1.0F, 4, device.stream());
    const Values out(x.size());
    const auto work = [&](int i) {
        cuda::experts(device.next(), {.x = rows_of(x.data(), n),
                                      .top_k = kTopK,
                                      .ids = ids.data() + i % kSets * pairs,
                                      .weights = weights.data(),
                                      .experts = layer.experts,
                                      .alpha = 3.55F,
                                      .out = rows_of(out.data(), n)});
    };
    const double seconds = median_seconds(device.stream(), work);
    const auto read = static_cast<double>(std::min(pairs, kExperts));
    report.add("experts, n=" + std::to_string(n), seconds,
               2.0 * read * kExpertValues + 4.0 * static_cast<double>(n * kHidden),
               2.0 * static_cast<double>(pairs) * kExpertValues);
}

void run(const std::string& json) {
    BenchContext device(std::size_t{3} << 30);
    Report report("experts", measure_ceilings(device.stream()), json);
    for (const std::int64_t n : {1, 4, 64, 1024, 8192}) bench_route(device, report, n);
    const Layer layer(device.stream());
    for (const std::int64_t n : {1, 2, 4, 16, 128, 1024, 8192, 32768})
        bench_experts(device, report, layer, n);
}

}  // namespace
}  // namespace longview::kernels::bench

int main(int argc, char** argv) {
    try {
        longview::kernels::bench::run(argc == 3 && std::strcmp(argv[1], "--json") == 0 ? argv[2]
                                                                                       : "");
    } catch (const std::exception& e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
    return 0;
}

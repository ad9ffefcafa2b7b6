// Linear layers of the real model on a GPU: products of one row with what surrounds them, and
// cuBLASLt's products of many.
//
//   linear_cuda_bench [--json FILE]
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/bench/cuda_context.h"
#include "kernels/cuda/ops.h"

namespace longview::kernels::bench {
namespace {

constexpr float kEps = 1e-5F;
constexpr std::int64_t kHidden = 6144;

using Values = DeviceArray<std::uint16_t>;

Values random_bf16(std::int64_t count, float scale, std::uint64_t seed, cudaStream_t stream) {
    Values values(static_cast<std::size_t>(count));
    fill_random_bf16(values.data(), values.size(), scale, seed, stream);
    return values;
}

DeviceArray<float> random_f32(std::int64_t count, float scale, std::uint64_t seed,
                              cudaStream_t stream) {
    DeviceArray<float> values(static_cast<std::size_t>(count));
    fill_random_f32(values.data(), values.size(), scale, seed, stream);
    return values;
}

Matrix rows_of(void* data, std::int64_t rows, std::int64_t cols, DType dtype = DType::kBF16) {
    return {data, dtype, rows, cols, cols};
}

struct OutputShape {
    std::int64_t size;
    Activation activation = Activation::kNone;
    DType dtype = DType::kBF16;
};

/// norm_linear of n rows with all `shapes` in one call, over a rotation of weights.
void bench_norm_linear(BenchContext& device, Report& report, const std::string& name,
                       std::int64_t n, std::vector<OutputShape> shapes, bool normed) {
    std::int64_t all = 0;
    for (const OutputShape& s : shapes) all += s.size;
    const auto weight_bytes = static_cast<std::size_t>(all * kHidden * 2);
    const int sets = rotation(weight_bytes);
    std::vector<Values> weights;
    for (int i = 0; i < sets; ++i)
        weights.push_back(
            random_bf16(all * kHidden, 0.0128F, static_cast<std::uint64_t>(i), device.stream()));
    const Values x = random_bf16(n * kHidden, 1.0F, 99, device.stream());
    const Values u(static_cast<std::size_t>(n * kHidden));
    const DeviceArray<float> gain = random_f32(kHidden, 1.0F, 98, device.stream());
    const DeviceArray<float> out(static_cast<std::size_t>(n * all));
    const auto work = [&](int i) {
        const std::uint16_t* weight = weights[static_cast<std::size_t>(i % sets)].data();
        float* to = out.data();
        std::vector<LinearOutput> outputs;
        for (const OutputShape& s : shapes) {
            outputs.push_back({.weight = {weight, DType::kBF16, s.size, kHidden},
                               .activation = s.activation,
                               .out = rows_of(to, n, s.size, s.dtype)});
            weight += s.size * kHidden;
            to += n * s.size;
        }
        cuda::norm_linear(device.next(),
                          {.x = rows_of(x.data(), n, kHidden),
                           .norm = Norm::kRms,
                           .gain = gain.data(),
                           .eps = kEps,
                           .normed = normed ? rows_of(u.data(), n, kHidden) : Matrix{},
                           .outputs = outputs});
    };
    const double seconds = median_seconds(device.stream(), work);
    double bytes = static_cast<double>(weight_bytes) + static_cast<double>(n * kHidden) * 4.0;
    for (const OutputShape& s : shapes)
        bytes += static_cast<double>(n * s.size) * static_cast<double>(size_of(s.dtype));
    report.add(name, seconds, bytes, 2.0 * static_cast<double>(n * all) * kHidden);
}

/// The output projection: a gated norm before, the residual after.
void bench_residual(BenchContext& device, Report& report, const std::string& name, std::int64_t n,
                    std::int64_t in, bool gated) {
    const auto weight_bytes = static_cast<std::size_t>(kHidden * in * 2);
    const int sets = rotation(weight_bytes);
    std::vector<Values> weights;
    for (int i = 0; i < sets; ++i)
        weights.push_back(
            random_bf16(kHidden * in, 0.011F, static_cast<std::uint64_t>(i), device.stream()));
    const Values x = random_bf16(n * in, 1.0F, 97, device.stream());
    const Values gate = random_bf16(n * in, 0.5F, 96, device.stream());
    const Values skip = random_bf16(n * kHidden, 1.0F, 95, device.stream());
    const DeviceArray<float> gain = random_f32(in, 1.0F, 94, device.stream());
    const Values out(static_cast<std::size_t>(n * kHidden));
    const auto work = [&](int i) {
        cuda::linear_residual(
            device.next(),
            {.in = rows_of(x.data(), n, in),
             .norm_gain = gated ? gain.data() : nullptr,
             .norm_eps = kEps,
             .gate = gated ? ConstMatrix(rows_of(gate.data(), n, in)) : ConstMatrix{},
             .weight = {weights[static_cast<std::size_t>(i % sets)].data(), DType::kBF16, kHidden,
                        in},
             .skip = rows_of(skip.data(), n, kHidden),
             .alpha = 3.55F,
             .out = rows_of(out.data(), n, kHidden)});
    };
    const double seconds = median_seconds(device.stream(), work);
    const double bytes = static_cast<double>(weight_bytes) +
                         static_cast<double>(n) * static_cast<double>(4 * in + 4 * kHidden);
    report.add(name, seconds, bytes, 2.0 * static_cast<double>(n * in) * kHidden);
}

void bench_product(BenchContext& device, Report& report, const std::string& name, std::int64_t n,
                   std::int64_t out_size, std::int64_t in) {
    const Values x = random_bf16(n * in, 1.0F, 93, device.stream());
    const Values weight = random_bf16(out_size * in, 0.0128F, 92, device.stream());
    const Values out(static_cast<std::size_t>(n * out_size));
    const auto work = [&](int) {
        const LinearOutput o{.weight = {weight.data(), DType::kBF16, out_size, in},
                             .out = rows_of(out.data(), n, out_size)};
        cuda::norm_linear(device.next(),
                          {.x = rows_of(x.data(), n, in), .normed = {}, .outputs = {&o, 1}});
    };
    const double seconds = median_seconds(device.stream(), work);
    const double bytes = 2.0 * (static_cast<double>(n) * static_cast<double>(in + out_size) +
                                static_cast<double>(in) * static_cast<double>(out_size));
    report.add(name, seconds, bytes,
               2.0 * static_cast<double>(n) * static_cast<double>(out_size * in));
}

void run(const std::string& json) {
    BenchContext device(std::size_t{1} << 30);
    Report report("linear", measure_ceilings(device.stream()), json);
    const OutputShape qkv{.size = 24576, .activation = Activation::kSilu};
    const OutputShape gate{.size = 8192, .activation = Activation::kSigmoid};
    bench_norm_linear(device, report, "norm + 24576x6144, n=1", 1, {qkv}, false);
    for (const std::int64_t n : {1, 2, 4}) {
        bench_norm_linear(device, report, "norm + qkv + gate 32768x6144, n=" + std::to_string(n), n,
                          {qkv, gate}, true);
    }
    bench_norm_linear(device, report, "norm + q, k, v 10240x6144, n=1", 1,
                      {{.size = 8192}, {.size = 1024}, {.size = 1024}}, true);
    for (const std::int64_t n : {1, 4})
        bench_residual(device, report, "gate, norm, 6144x8192, residual, n=" + std::to_string(n), n,
                       8192, true);
    bench_residual(device, report, "6144x8192, residual, n=1", 1, 8192, false);
    bench_norm_linear(device, report, "norm + head 200064x6144, fp32, n=1", 1,
                      {{.size = 200064, .dtype = DType::kF32}}, false);
    for (const std::int64_t n : {512, 4096, 16384}) {
        const std::string rows = ", n=" + std::to_string(n);
        bench_product(device, report, "24576x6144" + rows, n, 24576, kHidden);
        bench_product(device, report, "8192x6144" + rows, n, 8192, kHidden);
        bench_product(device, report, "6144x8192" + rows, n, kHidden, 8192);
        bench_product(device, report, "9216x6144" + rows, n, 9216, kHidden);
        bench_product(device, report, "6144x9216" + rows, n, kHidden, 9216);
        bench_norm_linear(device, report, "norm + qkv + gate 32768x6144" + rows, n, {qkv, gate},
                          true);
        bench_residual(device, report, "gate, norm, 6144x8192, residual" + rows, n, 8192, true);
    }
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

#include "kernels/bench/cuda_bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/runtime/cuda/check.h"
#include "kernels/runtime/cuda/handles.h"
#include "kernels/runtime/cuda/memory.h"

namespace longview::kernels::bench {

using cuda::bf16;
using cuda::check;

namespace {

constexpr int kThreads = 256;

__device__ std::uint32_t hash(std::uint64_t i, std::uint64_t seed) {
    std::uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ULL + seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return static_cast<std::uint32_t>(z >> 32);
}
/// About normal: the sum of the four bytes of a hash has a variance of 4 * 5461.25.
__device__ float normal(std::uint64_t i, std::uint64_t seed) {
    const std::uint32_t h = hash(i, seed);
    const int sum =
        static_cast<int>((h & 0xFFU) + (h >> 8 & 0xFFU) + (h >> 16 & 0xFFU) + (h >> 24));
    return static_cast<float>(sum - 510) * (1.0F / 147.8F);
}

template <typename T>
__global__ void fill_kernel(T* data, std::size_t count, float scale, std::uint64_t seed) {
    const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
    for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += step)
        data[i] = static_cast<T>(normal(i, seed) * scale);
}

/// Reads everything and writes next to nothing.
__global__ void read_kernel(const uint4* data, std::size_t count, std::uint32_t* out) {
    std::uint32_t sum = 0;
    const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
    std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * step < count; i += 4 * step) {
        const uint4 a = data[i], b = data[i + step], c = data[i + 2 * step], d = data[i + 3 * step];
        sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^
               d.z ^ d.w;
    }
    for (; i < count; i += step) sum ^= data[i].x;
    if (sum == 0x12345678U) *out = sum;
}

int sm_count() {
    int device = 0;
    int count = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "device");
    return count;
}

float milliseconds(cudaStream_t stream, const cuda::Event& from, const cuda::Event& to) {
    check(cudaStreamSynchronize(stream), "waiting");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, from.get(), to.get()), "timing");
    return ms;
}

}  // namespace

double median_seconds(cudaStream_t stream, const std::function<void(int)>& work,
                      double budget_seconds) {
    cuda::Event begin(cuda::Event::Timing::kOn);
    cuda::Event end(cuda::Event::Timing::kOn);
    int turn = 0;
    const auto timed = [&](const std::function<void()>& run) {
        check(cudaEventRecord(begin.get(), stream), "timing");
        run();
        check(cudaEventRecord(end.get(), stream), "timing");
        return milliseconds(stream, begin, end) * 1e-3;
    };
    work(turn++);
    const double once = timed([&] { work(turn++); });

    // Short work: several calls in one graph, so that the host's pace does not show.
    constexpr double kShort = 3e-4;
    int batch = 1;
    cudaGraphExec_t graph = nullptr;
    if (once < kShort) {
        batch = std::clamp(static_cast<int>(2e-3 / std::max(once, 2e-6)), 4, 200);
        cudaGraph_t recorded = nullptr;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording");
        for (int i = 0; i < batch; ++i) work(turn++);
        check(cudaStreamEndCapture(stream, &recorded), "recording");
        check(cudaGraphInstantiate(&graph, recorded, 0), "recording");
        check(cudaGraphDestroy(recorded), "recording");
        check(cudaGraphLaunch(graph, stream), "running");
    }
    std::vector<double> samples;
    double spent = 0.0;
    while (spent < budget_seconds || samples.size() < 5) {
        const double seconds = timed([&] {
            if (graph != nullptr) {
                check(cudaGraphLaunch(graph, stream), "running");
            } else {
                work(turn++);
            }
        });
        samples.push_back(seconds / batch);
        spent += seconds;
    }
    if (graph != nullptr) cudaGraphExecDestroy(graph);
    std::nth_element(samples.begin(),
                     samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2),
                     samples.end());
    return samples[samples.size() / 2];
}

int rotation(std::size_t bytes_each, std::size_t minimum) {
    if (minimum == 0) {
        int device = 0;
        int l2 = 0;
        check(cudaGetDevice(&device), "device");
        check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "device");
        minimum = std::size_t{4} * static_cast<std::size_t>(l2);
    }
    return static_cast<int>(
        std::max<std::size_t>(2, minimum / std::max<std::size_t>(1, bytes_each) + 1));
}

void fill_random_bf16(void* data, std::size_t count, float scale, std::uint64_t seed,
                      cudaStream_t stream) {
    fill_kernel<<<16 * sm_count(), kThreads, 0, stream>>>(static_cast<bf16*>(data), count, scale,
                                                          seed);
    cuda::check_launch("fill");
}
void fill_random_f32(float* data, std::size_t count, float scale, std::uint64_t seed,
                     cudaStream_t stream) {
    fill_kernel<<<16 * sm_count(), kThreads, 0, stream>>>(data, count, scale, seed);
    cuda::check_launch("fill");
}

Ceilings measure_ceilings(cudaStream_t stream) {
    constexpr std::size_t kBytes = std::size_t{4} << 30;
    Ceilings c;
    void* from = nullptr;
    void* to = nullptr;
    check(cudaMalloc(&from, kBytes), "bench memory");
    check(cudaMalloc(&to, kBytes), "bench memory");
    fill_random_bf16(from, kBytes / 2, 1.0F, 1, stream);
    fill_random_bf16(to, kBytes / 2, 1.0F, 2, stream);
    c.copy_bytes_per_second =
        2.0 * kBytes / median_seconds(stream, [&](int) {
            check(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, stream), "copy");
        });
    c.read_bytes_per_second =
        1.0 * kBytes / median_seconds(stream, [&](int) {
            read_kernel<<<8 * sm_count(), 512, 0, stream>>>(
                static_cast<const uint4*>(from), kBytes / 16, static_cast<std::uint32_t*>(to));
        });

    constexpr std::int64_t kSide = 8192;
    const cuda::Stream unused;
    cuda::DevicePool pool(0, unused, 0);
    cuda::StreamScratch scratch(pool);
    cuda::CublasLt cublas;
    cuda::Context context;
    context.stream = stream;
    context.device.sm_count = sm_count();
    context.scratch = &scratch;
    context.cublas = &cublas;
    const Matrix x{from, DType::kBF16, kSide, kSide, kSide};
    const LinearOutput outputs[] = {
        {.weight = {static_cast<std::byte*>(from) + kSide * kSide * 2, DType::kBF16, kSide, kSide},
         .out = {to, DType::kBF16, kSide, kSide, kSide}}};
    c.bf16_flops = 2.0 * kSide * kSide * kSide / median_seconds(stream, [&](int) {
                       cuda::norm_linear(context, {.x = x, .outputs = outputs});
                   });
    check(cudaFree(from), "bench memory");
    check(cudaFree(to), "bench memory");
    std::printf("ceilings: copy %.2f TB/s, read %.2f TB/s, bf16 product %.0f TFLOP/s\n",
                c.copy_bytes_per_second * 1e-12, c.read_bytes_per_second * 1e-12,
                c.bf16_flops * 1e-12);
    return c;
}

Report::Report(std::string family, const Ceilings& ceilings, std::string json_path)
    : family_(std::move(family)), json_path_(std::move(json_path)), ceilings_(ceilings) {
    std::printf("%-44s %12s %8s %8s %6s\n", family_.c_str(), "us", "TB/s", "TFLOP/s", "limit");
}
Report::~Report() {
    if (json_path_.empty()) return;
    std::ofstream file(json_path_);
    file << "{\"family\": \"" << family_ << "\", \"copy\": " << ceilings_.copy_bytes_per_second
         << ", \"read\": " << ceilings_.read_bytes_per_second
         << ", \"bf16\": " << ceilings_.bf16_flops << ", \"rows\": [" << json_ << "]}\n";
}
void Report::add(const std::string& name, double seconds, double bytes, double flops) {
    const double limit =
        std::max(bytes / ceilings_.read_bytes_per_second, flops / ceilings_.bf16_flops);
    std::printf("%-44s %12.2f %8.2f %8.0f %5.0f%%\n", name.c_str(), seconds * 1e6,
                bytes / seconds * 1e-12, flops / seconds * 1e-12, 100.0 * limit / seconds);
    char row[256];
    std::snprintf(row, sizeof(row),
                  "%s{\"name\": \"%s\", \"seconds\": %.9g, \"bytes\": %.9g, \"flops\": %.9g}",
                  json_.empty() ? "" : ", ", name.c_str(), seconds, bytes, flops);
    json_ += row;
}

}  // namespace longview::kernels::bench

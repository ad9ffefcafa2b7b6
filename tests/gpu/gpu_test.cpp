#include "tests/gpu/gpu_test.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/ops.h"
#include "kernels/runtime/cuda/check.h"
#include "kernels/runtime/cuda/handles.h"
#include "kernels/runtime/cuda/memory.h"

namespace longview::gpu_test {

using kernels::cuda::check;

std::uint64_t Random::next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
}
float Random::uniform(float low, float high) {
    return low + (high - low) * (static_cast<float>(next() >> 40) * 0x1p-24F);
}
float Random::normal() {
    // Irwin-Hall of four: close enough to normal, and cheap.
    float sum = 0.0F;
    for (int i = 0; i < 4; ++i) sum += uniform(-1.0F, 1.0F);
    return sum * 0.8660254F;
}
std::vector<float> Random::normals(std::int64_t count, float scale) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal() * scale;
    return values;
}
std::vector<float> Random::normals_bf16(std::int64_t count, float scale) {
    std::vector<float> values = normals(count, scale);
    for (float& v : values) v = from_bf16(to_bf16(v));
    return values;
}

std::uint16_t to_bf16(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
    bits += 0x7FFFU + (bits >> 16 & 1U);
    return static_cast<std::uint16_t>(bits >> 16);
}
float from_bf16(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
std::vector<std::uint16_t> to_bf16(std::span<const float> values) {
    std::vector<std::uint16_t> out(values.size());
    std::transform(values.begin(), values.end(), out.begin(), [](float v) { return to_bf16(v); });
    return out;
}

namespace {
constexpr std::size_t kGuard = 4096;
constexpr int kGuardByte = 0xFF;
}  // namespace

DeviceMemory::DeviceMemory(std::size_t size_bytes, std::size_t shift_bytes) : size_(size_bytes) {
    void* block = nullptr;
    const std::size_t whole = 2 * kGuard + size_bytes + shift_bytes;
    check(cudaMalloc(&block, whole), "test memory");
    block_ = static_cast<std::byte*>(block);
    data_ = block_ + kGuard + shift_bytes;
    check(cudaMemset(block_, kGuardByte, whole), "test memory");
    // Fills and copies of the default stream end in their own time, and the launchers' stream does
    // not wait for it.
    check(cudaStreamSynchronize(nullptr), "test memory");
}
DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : block_(std::exchange(other.block_, nullptr)), data_(other.data_), size_(other.size_) {}
DeviceMemory::~DeviceMemory() {
    if (block_ != nullptr) cudaFree(block_);
}
void DeviceMemory::write(const void* host, std::size_t size_bytes) {
    expect(size_bytes <= size_, "a test writes inside its memory");
    check(cudaMemcpy(data_, host, size_bytes, cudaMemcpyHostToDevice), "test memory");
    check(cudaStreamSynchronize(nullptr), "test memory");
}
std::vector<std::byte> DeviceMemory::read() const {
    std::vector<std::byte> out(size_);
    check(cudaMemcpy(out.data(), data_, size_, cudaMemcpyDeviceToHost), "test memory");
    return out;
}
std::vector<float> DeviceMemory::read_f32() const {
    const std::vector<std::byte> bytes = read();
    std::vector<float> out(size_ / sizeof(float));
    std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
    return out;
}
std::vector<float> DeviceMemory::read_bf16() const {
    const std::vector<std::byte> bytes = read();
    std::vector<float> out(size_ / 2);
    for (std::size_t i = 0; i < out.size(); ++i) {
        std::uint16_t half = 0;
        std::memcpy(&half, bytes.data() + 2 * i, sizeof(half));
        out[i] = from_bf16(half);
    }
    return out;
}
std::vector<std::int32_t> DeviceMemory::read_i32() const {
    const std::vector<std::byte> bytes = read();
    std::vector<std::int32_t> out(size_ / sizeof(std::int32_t));
    std::memcpy(out.data(), bytes.data(), out.size() * sizeof(std::int32_t));
    return out;
}
void DeviceMemory::check_guards() const {
    std::vector<unsigned char> guard(kGuard);
    for (const std::byte* at : {data_ - kGuard, data_ + size_}) {
        check(cudaMemcpy(guard.data(), at, kGuard, cudaMemcpyDeviceToHost), "test memory");
        expect(std::all_of(guard.begin(), guard.end(),
                           [](unsigned char b) { return b == kGuardByte; }),
               at < data_ ? "written in front of the memory" : "written behind the memory");
    }
}

DeviceMemory upload_f32(std::span<const float> values, std::size_t shift_bytes) {
    DeviceMemory memory(values.size_bytes(), shift_bytes);
    memory.write(values.data(), values.size_bytes());
    return memory;
}
DeviceMemory upload_bf16(std::span<const float> values, std::size_t shift_bytes) {
    const std::vector<std::uint16_t> halves = to_bf16(values);
    DeviceMemory memory(2 * halves.size(), shift_bytes);
    memory.write(halves.data(), 2 * halves.size());
    return memory;
}
DeviceMemory upload_i32(std::span<const std::int32_t> values) {
    DeviceMemory memory(values.size_bytes());
    memory.write(values.data(), values.size_bytes());
    return memory;
}

struct Device::Impl {
    kernels::cuda::Stream stream;
    kernels::cuda::DevicePool pool{0, stream, 0};
    kernels::cuda::StreamScratch scratch{pool};
    kernels::cuda::CublasLt cublas;
    Buffer step = pool.allocate(sizeof(kernels::cuda::StepInput));
    kernels::cuda::Context context;
    ThreadPool threads{0};
    std::unique_ptr<kernels::Backend> cpu = kernels::make_cpu_backend(threads);

    Impl() {
        cudaDeviceProp p{};
        check(cudaGetDeviceProperties(&p, 0), "device properties");
        context.stream = stream.get();
        context.device = {.sm_count = p.multiProcessorCount,
                          .compute = 10 * p.major + p.minor,
                          .shared_memory_bytes = p.sharedMemPerBlockOptin,
                          .l2_bytes = static_cast<std::size_t>(p.l2CacheSize)};
        context.scratch = &scratch;
        context.cublas = &cublas;
        // initcheck does not see what cuBLAS writes with the bulk copy engine.
        if (std::getenv("LONGVIEW_GPU_TEST_NO_CUBLAS") != nullptr) cublas.refuse_all();
    }
};

Device::Device() : impl_(std::make_unique<Impl>()) {}
Device::~Device() = default;
const kernels::cuda::Context& Device::context() const {
    impl_->scratch.restart();
    return impl_->context;
}
kernels::Backend& Device::cpu() {
    return *impl_->cpu;
}
void Device::finish() {
    impl_->stream.synchronize();
}
kernels::cuda::Context Device::step_context(std::int64_t position, std::int32_t id) {
    impl_->scratch.restart();
    auto* const step = impl_->step.as<kernels::cuda::StepInput>();
    kernels::cuda::set_step(impl_->context, step, {.position = position, .id = id});
    kernels::cuda::Context context = impl_->context;
    context.step = step;
    return context;
}

Difference difference(std::span<const float> got, std::span<const float> want) {
    double error = 0.0;
    double norm = 0.0;
    double largest_error = 0.0;
    double largest = 0.0;
    for (std::size_t i = 0; i < want.size(); ++i) {
        const double d = static_cast<double>(got[i]) - want[i];
        error += d * d;
        norm += static_cast<double>(want[i]) * want[i];
        largest_error = std::max(largest_error, std::abs(d));
        largest = std::max(largest, std::abs(static_cast<double>(want[i])));
    }
    if (norm == 0.0) return {std::sqrt(error), largest_error};
    return {std::sqrt(error / norm), largest_error / largest};
}

void expect_close(const std::string& what, std::span<const float> got, std::span<const float> want,
                  double bound) {
    expect(got.size() == want.size(), what + ": " + std::to_string(got.size()) + " values, not " +
                                          std::to_string(want.size()));
    for (std::size_t i = 0; i < got.size(); ++i)
        expect(std::isfinite(got[i]), what + ": value " + std::to_string(i) + " is " +
                                          std::to_string(got[i]) + ", not " +
                                          std::to_string(want[i]));
    const Difference d = difference(got, want);
    char text[160];
    std::snprintf(text, sizeof(text), ": relative difference %.3g above %.3g (largest %.3g)",
                  d.relative, bound, d.largest);
    expect(d.relative <= bound, what + text);
}

void expect(bool condition, const std::string& what) {
    if (!condition) throw std::runtime_error(what);
}

bool small_run() {
    return std::getenv("LONGVIEW_GPU_TEST_SMALL") != nullptr;
}

int run_cases(int argc, char** argv, const std::vector<Case>& cases) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        std::printf("SKIPPED: this machine has no usable NVIDIA GPU\n");
        return 77;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::string part = argc > 1 ? argv[1] : "";
    int failed = 0;
    int ran = 0;
    auto device = std::make_unique<Device>();
    constexpr std::size_t kEvery = 4;
    for (std::size_t i = 0; i < cases.size(); ++i) {
        const Case& c = cases[i];
        if (c.name.find(part) == std::string::npos) continue;
        if (small_run() && i % kEvery != 0) continue;
        ++ran;
        const auto start = std::chrono::steady_clock::now();
        try {
            c.run(*device);
            device->finish();
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
            std::printf("ok      %-60s %.2f s\n", c.name.c_str(), took.count());
        } catch (const std::exception& error) {
            ++failed;
            std::printf("FAILED  %s: %s\n", c.name.c_str(), error.what());
            if (kernels::cuda::is_lost(cudaDeviceSynchronize())) {
                std::printf("FAILED  the device is lost, the rest was not run\n");
                return failed;
            }
        }
    }
    std::printf("%d of %d cases passed\n", ran - failed, ran);
    return std::min(failed, 76);
}

}  // namespace longview::gpu_test

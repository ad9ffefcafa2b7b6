// What the GPU tests share. They run on machines that have CUDA and a compiler but no Qt, so this
// is a small harness of its own: a test program lists cases, each prints one line, the exit status
// is the number of failed cases (77 without a GPU: skipped).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/runtime/thread_pool.h"

namespace longview::gpu_test {

/// Deterministic numbers, different for every seed.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15U + 1) {}
    std::uint64_t next();
    float uniform(float low, float high);
    float normal();
    /// Values as bf16 can hold them, normally distributed times `scale`.
    std::vector<float> normals_bf16(std::int64_t count, float scale = 1.0F);
    std::vector<float> normals(std::int64_t count, float scale = 1.0F);

  private:
    std::uint64_t state_;
};

std::uint16_t to_bf16(float value);  // nearest, ties to even
float from_bf16(std::uint16_t bits);
std::vector<std::uint16_t> to_bf16(std::span<const float> values);

/// Device memory with guard zones on both sides and an optional shift from 256-byte alignment.
/// Contents begin as NaN (all bits set), so that what a kernel leaves unwritten is seen.
class DeviceMemory {
  public:
    explicit DeviceMemory(std::size_t size_bytes, std::size_t shift_bytes = 0);
    ~DeviceMemory();
    DeviceMemory(DeviceMemory&&) noexcept;
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }
    void write(const void* host, std::size_t size_bytes);
    std::vector<std::byte> read() const;
    std::vector<float> read_f32() const;
    std::vector<float> read_bf16() const;
    std::vector<std::int32_t> read_i32() const;
    /// Throws when a byte of the guard zones was changed.
    void check_guards() const;

  private:
    std::byte* block_ = nullptr;
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

DeviceMemory upload_f32(std::span<const float> values, std::size_t shift_bytes = 0);
/// Rounds to bf16.
DeviceMemory upload_bf16(std::span<const float> values, std::size_t shift_bytes = 0);
DeviceMemory upload_i32(std::span<const std::int32_t> values);

/// A stream, scratch memory and cuBLASLt for launchers, and the CPU backend as the reference.
class Device {
  public:
    Device();
    ~Device();
    const kernels::cuda::Context& context() const;
    kernels::Backend& cpu();
    /// Waits and throws on any asynchronous error.
    void finish();
    /// A copy of the context whose kernels read `position` and `id` from device memory, as in a
    /// recorded decode step.
    kernels::cuda::Context step_context(std::int64_t position, std::int32_t id);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// ||got - want|| / ||want|| and the largest difference relative to the largest |want|.
struct Difference {
    double relative = 0.0;
    double largest = 0.0;
};
Difference difference(std::span<const float> got, std::span<const float> want);
/// Throws with `what` and the figures when the relative difference is above `bound`, sizes differ
/// or any value of `got` is not finite.
void expect_close(const std::string& what, std::span<const float> got, std::span<const float> want,
                  double bound);
void expect(bool condition, const std::string& what);

/// True under a sanitizer, which makes everything up to a hundred times slower: tests then draw and
/// run less (LONGVIEW_GPU_TEST_SMALL is set).
bool small_run();

/// One line of the report: runs the function, prints ok or FAILED with the exception's text.
using CaseFunction = std::function<void(Device&)>;
struct Case {
    std::string name;
    CaseFunction run;
};
/// Arguments: an optional part of the names to run. Returns the exit status.
int run_cases(int argc, char** argv, const std::vector<Case>& cases);

}  // namespace longview::gpu_test

// A context for launchers in the benchmarks: a stream, cuBLASLt and one block of scratch memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <utility>

#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/runtime/error.h"

namespace longview::kernels::bench {

/// Scratch in one block, all of it free again after begin().
class ArenaScratch final : public cuda::Scratch {
  public:
    explicit ArenaScratch(std::size_t size_bytes) : size_(size_bytes) {
        cuda::check(cudaMalloc(&block_, size_bytes), "cudaMalloc");
        cuda::check(cudaMallocHost(&pinned_, kPinnedBytes), "cudaMallocHost");
    }
    ~ArenaScratch() override {
        cudaFree(block_);
        cudaFreeHost(pinned_);
    }
    void begin() { used_ = used_pinned_ = 0; }
    void* take(std::size_t size_bytes) override { return part(block_, size_, used_, size_bytes); }
    void* take_pinned(std::size_t size_bytes) override {
        return part(pinned_, kPinnedBytes, used_pinned_, size_bytes);
    }

  private:
    static constexpr std::size_t kPinnedBytes = 1 << 20;
    static void* part(void* block, std::size_t size, std::size_t& used, std::size_t count) {
        const std::size_t begin = used;
        used += (count + 255) / 256 * 256;
        if (used > size) throw Error(Category::kMemory, "the benchmark's scratch is too small");
        return static_cast<std::byte*>(block) + begin;
    }
    void* block_ = nullptr;
    void* pinned_ = nullptr;
    std::size_t size_ = 0, used_ = 0, used_pinned_ = 0;
};

class BenchContext {
  public:
    explicit BenchContext(std::size_t scratch_bytes) : scratch_(scratch_bytes) {
        cuda::check(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking),
                    "cudaStreamCreate");
        cudaDeviceProp p{};
        int device = 0;
        cuda::check(cudaGetDevice(&device), "cudaGetDevice");
        cuda::check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
        context_.device = {.sm_count = p.multiProcessorCount,
                           .compute = 10 * p.major + p.minor,
                           .shared_memory_bytes = p.sharedMemPerBlockOptin,
                           .l2_bytes = static_cast<std::size_t>(p.l2CacheSize)};
        context_.scratch = &scratch_;
        context_.cublas = &cublas_;
    }
    ~BenchContext() { cudaStreamDestroy(context_.stream); }
    BenchContext(const BenchContext&) = delete;
    BenchContext& operator=(const BenchContext&) = delete;

    /// For the next operator: scratch is free again.
    const cuda::Context& next() {
        scratch_.begin();
        return context_;
    }
    cudaStream_t stream() const { return context_.stream; }

  private:
    ArenaScratch scratch_;
    cuda::CublasLt cublas_;
    cuda::Context context_;
};

/// Device memory of a benchmark.
template <class T>
class DeviceArray {
  public:
    explicit DeviceArray(std::size_t count) : count_(count) {
        void* p = nullptr;
        cuda::check(cudaMalloc(&p, count * sizeof(T)), "cudaMalloc");
        data_ = static_cast<T*>(p);
    }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(DeviceArray&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;
    T* data() const { return data_; }
    std::size_t size() const { return count_; }
    void write(const T* host) {
        cuda::check(cudaMemcpy(data_, host, count_ * sizeof(T), cudaMemcpyHostToDevice),
                    "cudaMemcpy");
        cuda::check(cudaStreamSynchronize(nullptr), "cudaMemcpy");  // no other stream waits for it
    }

  private:
    T* data_ = nullptr;
    std::size_t count_ = 0;
};

}  // namespace longview::kernels::bench

// What a launcher of this folder may use besides its parameters: a stream, what is known of the
// device, and scratch memory. No state of its own, so that a test can make one in three lines.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace longview::kernels::cuda {

/// Numbers of the device that launch plans depend on.
struct DeviceLimits {
    int sm_count = 0;
    int compute = 0;                      // 10 * major + minor: 80, 86, 89, 90, 120
    std::size_t shared_memory_bytes = 0;  // most a block may ask for (opt-in)
    std::size_t l2_bytes = 0;
};

/// What changes from one decode step to the next; lies in device memory, so that a recorded graph
/// reads the present values.
struct StepInput {
    std::int64_t position = 0;
    std::int32_t id = 0;
    std::int32_t padding = 0;
};

/// Scratch memory for one operator. take() is valid until the operator's launches are queued; the
/// next operator reuses the same memory, which the order of the stream makes safe.
class Scratch {
  public:
    virtual ~Scratch() = default;
    /// 256-byte aligned device memory with undefined contents. Several calls in one operator give
    /// disjoint blocks. Errors: kMemory.
    virtual void* take(std::size_t size_bytes) = 0;
    template <typename T>
    T* take_array(std::int64_t count) {
        return static_cast<T*>(take(static_cast<std::size_t>(count) * sizeof(T)));
    }
    /// Pinned host memory under the same rules, for results a launcher must look at.
    virtual void* take_pinned(std::size_t size_bytes) = 0;
};

class CublasLt;

struct Context {
    cudaStream_t stream = nullptr;
    DeviceLimits device;
    Scratch* scratch = nullptr;
    CublasLt* cublas = nullptr;
    /// Device memory, not null while a decode step is recorded: kernels then take the position from
    /// there and ignore the one of their parameters. No host synchronisation is allowed then.
    const StepInput* step = nullptr;
};

}  // namespace longview::kernels::cuda

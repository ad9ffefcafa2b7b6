// What a launcher of this folder may use besides its parameters: a stream, what is known of the
// device, and scratch memory. No state of its own, so that a test can make one in three lines.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/cuda/scratch.h"

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

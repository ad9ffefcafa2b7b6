// CUDA status codes as errors of our own.
#pragma once

#include <cuda_runtime_api.h>

namespace longview::kernels::cuda {

/// Throws kMemory for an allocation failure, kDevice otherwise (naming `what`, the status and
/// whether the device is lost); does nothing on success.
void check(cudaError_t status, const char* what);

/// check() of the launch just made.
inline void check_launch(const char* kernel) {
    check(cudaPeekAtLastError(), kernel);
}

}  // namespace longview::kernels::cuda

// CUDA status codes as errors of our own.
#pragma once

#include <cuda_runtime_api.h>

namespace longview::kernels::cuda {

/// Does nothing on success. Throws kMemory for a failed allocation and kDevice otherwise, naming
/// `what` and the status. After a status that leaves the context unusable (an illegal access, a
/// lost device) the error's context holds {"lost", "yes"}: only a new process can compute again.
void check(cudaError_t status, const char* what);

/// check() of the launch just made.
inline void check_launch(const char* kernel) {
    check(cudaPeekAtLastError(), kernel);
}

/// True for statuses after which every later call in this process fails.
bool is_lost(cudaError_t status);

}  // namespace longview::kernels::cuda

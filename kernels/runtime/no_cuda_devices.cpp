// The form of cuda_devices.h in a build without CUDA.
#include "kernels/runtime/cuda_devices.h"

namespace longview {

bool built_with_cuda() {
    return false;
}

std::vector<CudaDevice> list_cuda_devices() {
    return {};
}

}  // namespace longview

#include <cuda_runtime_api.h>

#include "kernels/runtime/cuda_devices.h"

namespace longview {

bool built_with_cuda() {
    return true;
}

std::vector<CudaDevice> list_cuda_devices() {
    std::vector<CudaDevice> devices;
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) return devices;  // no driver, or no device
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp properties{};
        if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
        devices.push_back({.index = i,
                           .name = properties.name,
                           .compute_major = properties.major,
                           .compute_minor = properties.minor,
                           .memory_total_bytes = properties.totalGlobalMem});
    }
    return devices;
}

}  // namespace longview

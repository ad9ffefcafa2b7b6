// The NVIDIA GPUs of this machine, as far as this build can see them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longview {

struct CudaDevice {
    int index = 0;
    std::string name;
    int compute_major = 0;
    int compute_minor = 0;
    std::uint64_t memory_total_bytes = 0;
};

/// True when the program was built with CUDA.
bool built_with_cuda();

/// Empty without a usable GPU or driver; never throws. Only asks the driver for properties: takes
/// no memory on the device.
std::vector<CudaDevice> list_cuda_devices();

}  // namespace longview

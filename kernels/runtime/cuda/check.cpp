#include "kernels/runtime/cuda/check.h"

#include <string>

#include "kernels/runtime/error.h"

namespace longview::kernels::cuda {

bool is_lost(cudaError_t status) {
    switch (status) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchFailure:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorECCUncorrectable:
        case cudaErrorNvlinkUncorrectable:
        case cudaErrorContained:
        case cudaErrorDevicesUnavailable:
        case cudaErrorSystemNotReady:
            return true;
        default:
            return false;
    }
}

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an ordinary failure is not to be found again by the next call
    const std::string name = cudaGetErrorName(status);
    const std::string text = cudaGetErrorString(status);
    Error::Context context{{"operation", what}, {"status", name}};
    if (status == cudaErrorMemoryAllocation)
        throw Error(Category::kMemory,
                    "the GPU has too little free memory (" + std::string(what) +
                        "). Close other programs that use it, ask about less text, or use "
                        "--device cpu",
                    std::move(context));
    if (is_lost(status)) {
        context.emplace_back("lost", "yes");
        throw Error(Category::kDevice,
                    "the GPU was lost while computing (" + std::string(what) + ": " + text +
                        "). Start the program again; if it happens again, use --device cpu",
                    std::move(context));
    }
    throw Error(Category::kDevice,
                "the GPU reported an error (" + std::string(what) + ": " + text +
                    "). Try again, or use --device cpu",
                std::move(context));
}

}  // namespace longview::kernels::cuda

// Stands in for the rest of this folder in a build without CUDA.
#include "kernels/backend.h"

namespace longview::kernels {

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions&) {
    throw Error(
        Category::kUnsupported,
        "this program was built without CUDA; build it where the CUDA toolkit is installed, "
        "or use --device cpu");
}

}  // namespace longview::kernels

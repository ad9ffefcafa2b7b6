// Matrix products by cuBLASLt, which is loaded when the first object is made: a program that finds
// no GPU never maps its 700 MB. Used by linear.cpp and experts_sorted.cu, from one thread, on the
// context's stream or the side streams.
#pragma once

#include <cuda_bf16.h>

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/runtime/cuda/handles.h"

namespace longview::kernels::cuda {

/// y = alpha * x W^T + beta * c + bias, accumulated in fp32 and rounded once.
struct MatmulParams {
    ConstMatrix x;      // [n, in] bf16
    WeightView weight;  // [out, in] bf16
    float alpha = 1.0F;
    float beta = 0.0F;
    ConstMatrix c;  // [n, out] of y's type; used where beta is not 0; may be y
    const __nv_bfloat16* bias = nullptr;  // [out], device memory, y bf16 only; or null
    Matrix y;                             // [n, out] bf16 or fp32
};

class CublasLt {
  public:
    /// On the current device. Errors: kDevice when the library is missing or refuses.
    CublasLt();
    ~CublasLt();
    CublasLt(const CublasLt&) = delete;
    CublasLt& operator=(const CublasLt&) = delete;

    /// Queues the product. False, and nothing queued, where cuBLASLt has no kernel for this shape
    /// and alignment. The choice of the kernel is kept for each shape, with n rounded up a little
    /// above 16 rows. Errors: kDevice.
    bool matmul(const Context& context, const MatmulParams& p);

    /// For tests: from now on matmul() refuses everything, so that the kernels of our own are used.
    void refuse_all();

    /// Streams that products may be given instead of the context's own, each with a workspace.
    SideStreams& side_streams();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace longview::kernels::cuda

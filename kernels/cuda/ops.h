// The CUDA form of each operator family; CudaBackend forwards to these. Contracts in backend.h,
// with three differences: activations are bf16 (logits fp32), ids and history lie in device memory,
// and a launcher returns when its work is queued on the stream.
//
// Launchers check shapes with LONGVIEW_CHECK before the first launch, accept zero rows, and take
// any alignment that backend.h allows: the fast path where pointers and strides are multiples of 16
// bytes, a slower one otherwise. Any number of rows; sizes beyond 2^31 elements are ordinary.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace longview::kernels::cuda {

// embedding.cu; ids are device memory, null: the id of context.step
void embed(const Context& c, const WeightView& table, const std::int32_t* ids, Matrix out);
void gather_rows(const Context& c, ConstMatrix table, const float* fallback,
                 const std::int32_t* index, Matrix out);
/// to[i] = from[i] with another type, `count` elements.
void convert(const Context& c, const void* from, DType from_dtype, void* to, DType to_dtype,
             std::int64_t count);

/// *to = value, in the order of the stream.
void set_step(const Context& c, StepInput* to, const StepInput& value);

// norm.cu: y = norm(x), rows; y may be bf16 or fp32
void rms_norm(const Context& c, ConstMatrix x, const float* gain, float eps, Matrix y);
void layer_norm(const Context& c, ConstMatrix x, const float* gain, const float* bias, float eps,
                Matrix y);

// linear.cpp: chooses between gemv.cu (few rows) and cuBLASLt
void norm_linear(const Context& c, const NormLinearParams& p);
void linear_residual(const Context& c, const LinearResidualParams& p);

// route.cu, experts.cu
void route(const Context& c, const RouteParams& p);
void experts(const Context& c, const ExpertsParams& p);

// lightning.cu
void lightning_attention(const Context& c, const LightningParams& p);

// rope.cu
void rope_append(const Context& c, const RopeAppendParams& p);

// softmax_prefill.cu, softmax_decode.cu
void softmax_attention(const Context& c, const SoftmaxAttentionParams& p);

// vit.cu
void patch_embed(const Context& c, const PatchEmbedParams& p);
void vit_attention(const Context& c, const VitAttentionParams& p);

// sampling.cu: see sampling.h

}  // namespace longview::kernels::cuda

// The CPU form of each operator family; CpuBackend forwards to these. Contracts in backend.h.
// Each family is one .cpp file of this folder, compiled for several instruction sets with Highway
// and chosen at run time.
#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/runtime/thread_pool.h"

namespace longview::kernels::cpu {

/// What an operator may use besides its parameters. Scratch grows and is kept between calls.
struct Context {
    ThreadPool& pool;
    /// 64-byte aligned floats of this thread's own, at least `count`, undefined contents.
    /// Valid until the next call with the same thread.
    float* scratch(int thread, std::size_t count);
    /// The same, shared by all threads of one operator.
    float* shared_scratch(std::size_t count);

    explicit Context(ThreadPool& p);
    std::vector<Buffer> per_thread;
    Buffer shared;
};

// embedding.cpp
void embed(Context& c, const WeightView& table, std::span<const std::int32_t> ids, Matrix out);
void gather_rows(Context& c, ConstMatrix table, const float* fallback,
                 std::span<const std::int32_t> index, Matrix out);
void convert_to_f32(Context& c, const WeightView& host, float* out);

// norm.cpp: y = norm(x), rows
void rms_norm(Context& c, ConstMatrix x, const float* gain, float eps, Matrix y);
void layer_norm(Context& c, ConstMatrix x, const float* gain, const float* bias, float eps,
                Matrix y);

// linear.cpp
void norm_linear(Context& c, const NormLinearParams& p);
void linear_residual(Context& c, const LinearResidualParams& p);

// experts.cpp
void route(Context& c, const RouteParams& p);
void experts(Context& c, const ExpertsParams& p);

// lightning.cpp
void lightning_attention(Context& c, const LightningParams& p);

// rope.cpp
void rope_append(Context& c, const RopeAppendParams& p);

// softmax_attention.cpp
void softmax_attention(Context& c, const SoftmaxAttentionParams& p);

// vit.cpp
void patch_embed(Context& c, const PatchEmbedParams& p);
void vit_attention(Context& c, const VitAttentionParams& p);

// sampling.cpp
std::int32_t sample(Context& c, const SampleParams& p);

}  // namespace longview::kernels::cpu

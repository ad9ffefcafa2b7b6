// The operators a model may call. A model definition is written once against this interface;
// kernels/cpu and kernels/cuda implement it. Operators are coarse, so that a backend can fuse.
//
// Used from one thread at a time. Calls are ordered as made; a GPU backend may return before the
// work is done (synchronize() waits), and host memory handed to copy_in may be reused on return.
// All pointers in parameters are memory of this backend unless they say "host".
// Errors: Category::kBug on a broken shape, kMemory, kDevice, kCancelled (set_cancel_flag).
// Any operator accepts zero rows and then does nothing. Tensor rows need no particular alignment
// beyond their element size.
//
// Reproducibility: the same calls give the same bits at every run. On the CPU a row's result does
// not depend on which other rows are in the call nor on the number of threads, bit for bit
// (lightning attention: for splits at multiples of its tile); a GPU chooses other kernels for other
// numbers of rows, which differ within rounding.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/tensor.h"

namespace longview {
class CancelFlag;
class ThreadPool;
}  // namespace longview

namespace longview::kernels {

enum class Activation { kNone, kSilu, kSigmoid, kGelu };  // kGelu is the exact erf form
enum class Norm { kNone, kRms, kLayer };

/// What computes, and with how much memory.
struct DeviceInfo {
    std::string kind;  // "cpu" or "cuda"
    std::string name;  // "AMD EPYC ..., 2 threads, AVX2"
    std::uint64_t memory_total_bytes = 0;
    std::uint64_t memory_free_bytes = 0;
};

/// A weight that lies where the backend can compute with it.
struct Weight {
    WeightView view;
    Buffer owner;  // empty when the view borrows the caller's memory
};

/// y[., rows of weight] = act(W x + bias) for one of several products of the same input.
struct LinearOutput {
    WeightView weight;            // [out, in]
    const float* bias = nullptr;  // [out] or null
    Activation activation = Activation::kNone;
    Matrix out;  // [n, out]
};

/// u = norm(x); every output = act(W u + bias).
///   RMS:   u = gain * x / sqrt(mean(x^2) + eps)                  (model-spec 2)
///   Layer: u = gain * (x - mean) / sqrt(var + eps) + norm_bias   (model-spec 7.5)
struct NormLinearParams {
    ConstMatrix x;  // [n, in]
    Norm norm = Norm::kNone;
    const float* gain = nullptr;       // [in]
    const float* norm_bias = nullptr;  // [in], Norm::kLayer only
    float eps = 0.0F;
    Matrix normed;  // [n, in] receives u; without data when nobody needs it
    std::span<const LinearOutput> outputs;
};

/// out = alpha * skip + beta * (W (gate * RMSNorm(in; norm_gain)) + bias)
struct LinearResidualParams {
    ConstMatrix in;                    // [n, in]
    const float* norm_gain = nullptr;  // [in], null: no norm
    float norm_eps = 0.0F;
    ConstMatrix gate;             // [n, in] factors, without data: 1
    WeightView weight;            // [out, in]
    const float* bias = nullptr;  // [out] or null
    ConstMatrix skip;             // [n, out]; may be out itself
    float alpha = 1.0F;
    float beta = 1.0F;
    Matrix out;  // [n, out]
};

/// Lightning attention with the state going in and out (model-spec 3.4, 3.5).
///   S_t = exp(-slope) S_{t-1} + k_t v_t^T,  o_t = q_t^T S_t
struct LightningParams {
    ConstMatrix qkv;  // [n, heads * 3 * head_dim], a head's q, k, v side by side, after SiLU
    int heads = 0;
    int head_dim = 0;
    const float* slopes = nullptr;  // [heads], positive
    float* state = nullptr;         // [heads, head_dim (k), head_dim (v)], updated in place
    std::int64_t position = 0;      // of the first row; tiles are aligned to it
    Matrix out;                     // [n, heads * head_dim]
};

/// One layer's keys and values in pages of page_tokens positions. In a page, this layer's part
/// begins layer_offset_bytes from its start: K [kv_heads, page_tokens, head_dim], then V likewise.
struct KvView {
    void* const* pages = nullptr;  // [number of pages]
    std::int64_t page_tokens = 0;
    std::int64_t layer_offset_bytes = 0;
    DType dtype = DType::kF32;  // kF32 or kBF16
    int kv_heads = 0;
    int head_dim = 0;
};

/// Turns the first rotary_dim dims of each head of q (in place) and k by position (NeoX halves,
/// model-spec 4), and stores k and v into the pages.
struct RopeAppendParams {
    Matrix q;       // [n, heads * head_dim]
    ConstMatrix k;  // [n, kv_heads * head_dim]
    ConstMatrix v;  // [n, kv_heads * head_dim]
    int heads = 0;
    int rotary_dim = 0;
    double theta = 0.0;
    std::int64_t position = 0;  // of the first row
    KvView kv;
};

/// Causal grouped-query attention; row i sees the positions 0 ... position + i. Query head h uses
/// key/value head h / (heads / kv_heads). Never holds more than a block of scores.
struct SoftmaxAttentionParams {
    ConstMatrix q;  // [n, heads * head_dim]
    int heads = 0;
    float scale = 0.0F;
    std::int64_t position = 0;
    KvView kv;
    Matrix out;  // [n, heads * head_dim]
};

/// v = RMSNorm(x); the top_k experts of softmax(gate v) with their renormalised weights, larger
/// first, the lower index on a tie (model-spec 5). fp32 throughout.
struct RouteParams {
    ConstMatrix x;  // [n, hidden]
    const float* gain = nullptr;
    float eps = 0.0F;
    Matrix normed;    // [n, hidden] receives v
    WeightView gate;  // [experts, hidden], kF32
    int top_k = 0;
    std::int32_t* ids = nullptr;  // [n, top_k]
    float* weights = nullptr;     // [n, top_k]
};

struct ExpertWeights {
    WeightView w1;  // [intermediate, hidden] gate branch
    WeightView w3;  // [intermediate, hidden] up
    WeightView w2;  // [hidden, intermediate] down
};

/// out = alpha * x + beta * sum_i weight_i * w2_i (silu(w1_i x) * (w3_i x)); dropless.
struct ExpertsParams {
    ConstMatrix x;  // [n, hidden]
    int top_k = 0;
    const std::int32_t* ids = nullptr;  // [n, top_k] from route()
    const float* weights = nullptr;     // [n, top_k]
    std::span<const ExpertWeights> experts;
    float alpha = 1.0F;
    float beta = 1.0F;
    Matrix out;  // [n, hidden]; not x
};

/// Tiles to the first hidden state of the tower: normalise, 14x14 convolution without bias, class
/// embedding first, position embedding, LayerNorm (model-spec 7.4, 7.5).
struct PatchEmbedParams {
    const std::uint8_t* tiles = nullptr;  // [tiles, size, size, 3] RGB
    std::int64_t num_tiles = 0;
    int tile_size = 0;
    int patch_size = 0;
    float mean[3] = {};  // host values
    float std[3] = {};
    WeightView weight;                       // [hidden, 3 * patch * patch]
    const float* class_embedding = nullptr;  // [hidden]
    const float* positions = nullptr;        // [patches + 1, hidden]
    const float* gain = nullptr;             // [hidden]
    const float* bias = nullptr;             // [hidden]
    float eps = 0.0F;
    Matrix out;  // [num_tiles * (patches + 1), hidden]
};

/// Full attention inside each tile (no mask), all tiles in one call.
struct VitAttentionParams {
    ConstMatrix q, k, v;  // [num_tiles * tokens, heads * head_dim]
    std::int64_t num_tiles = 0;
    std::int64_t tokens = 0;  // per tile
    int heads = 0;
    float scale = 0.0F;
    Matrix out;  // as q
};

/// How the next token is chosen from its logits. Order: suppressed ids out; repetition, presence
/// and frequency penalties; temperature; top_k; top_p; min_p; draw. temperature 0: largest logit
/// after the penalties, the lowest id on a tie.
struct SampleParams {
    const float* logits = nullptr;  // [vocab]; not changed
    std::int64_t vocab = 0;
    const std::uint8_t* suppressed = nullptr;  // [vocab], 1: never; or null
    const std::int32_t* history = nullptr;     // ids the penalties look at, host
    std::int64_t history_length = 0;
    float temperature = 0.0F;
    int top_k = 0;       // 0: all
    float top_p = 1.0F;  // smallest set of ids that reaches this probability
    float min_p = 0.0F;  // at least this share of the largest probability
    float repetition_penalty = 1.0F;
    float presence_penalty = 0.0F;
    float frequency_penalty = 0.0F;
    std::uint64_t seed = 0;  // seed and step determine the draw
    std::uint64_t step = 0;
};

/// One step of writing: the token `id` is read at `position`.
struct StepCall {
    std::int32_t id = 0;
    std::int64_t position = 0;
    /// Equal numbers stand for the same buffers: a step that differs from an earlier one only in
    /// id and position may be replayed from a recording of it.
    std::uint64_t memory = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;

    virtual DeviceInfo device() const = 0;
    /// Type of activations between operators: kF32 on the CPU, kBF16 on a GPU.
    virtual DType activation_dtype() const = 0;
    /// Type of cached keys and values unless the caller wants another.
    virtual DType kv_dtype() const = 0;
    /// Rows a prefill should hand over at once for full speed.
    virtual std::int64_t preferred_chunk_tokens() const = 0;
    /// Long operators poll it and throw kCancelled; outputs are then undefined. Not owned.
    virtual void set_cancel_flag(const CancelFlag* flag) = 0;

    // Memory.
    virtual Buffer allocate(std::size_t size_bytes) = 0;
    virtual void copy_in(void* to, const void* from_host, std::size_t size_bytes) = 0;
    virtual void copy_out(void* to_host, const void* from, std::size_t size_bytes) = 0;
    virtual void copy(void* to, const void* from, std::size_t size_bytes) = 0;
    virtual void zero(void* to, std::size_t size_bytes) = 0;
    virtual void synchronize() = 0;
    /// Makes a weight usable: in place where the backend can read host memory (it must then
    /// outlive the result), else a copy. Unaligned host data is copied.
    virtual Weight place(const WeightView& host) = 0;
    /// place() of weights with equal columns whose products are taken of the same rows. Where the
    /// backend copies, one after the other, so that they can be multiplied as one matrix.
    virtual std::vector<Weight> place_together(std::span<const WeightView> host) {
        std::vector<Weight> placed;
        for (const WeightView& view : host) placed.push_back(place(view));
        return placed;
    }
    /// The values as kF32, whatever they were stored as.
    virtual Buffer place_floats(const WeightView& host) = 0;

    // Rows.
    /// out[i] = table[ids[i]]; ids are host values in [0, table.rows).
    virtual void embed(const WeightView& table, std::span<const std::int32_t> ids, Matrix out) = 0;
    /// out[i] = index[i] < 0 ? fallback : table[index[i]]; index is host memory.
    virtual void gather_rows(ConstMatrix table, const float* fallback,
                             std::span<const std::int32_t> index, Matrix out) = 0;

    /// Runs `body`, which makes the operator calls of a decode step with one row: embed() of
    /// call.id, attention at call.position. The body may be called or an equal recording replayed,
    /// so it must do nothing else.
    virtual void step(const StepCall& call, const std::function<void()>& body) = 0;

    // Text model.
    virtual void norm_linear(const NormLinearParams& p) = 0;
    virtual void linear_residual(const LinearResidualParams& p) = 0;
    virtual void lightning_attention(const LightningParams& p) = 0;
    virtual void rope_append(const RopeAppendParams& p) = 0;
    virtual void softmax_attention(const SoftmaxAttentionParams& p) = 0;
    virtual void route(const RouteParams& p) = 0;
    virtual void experts(const ExpertsParams& p) = 0;
    virtual std::int32_t sample(const SampleParams& p) = 0;

    // Vision tower.
    virtual void patch_embed(const PatchEmbedParams& p) = 0;
    virtual void vit_attention(const VitAttentionParams& p) = 0;
};

/// The CPU backend on a pool that must outlive it.
std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool);

struct CudaBackendOptions {
    int device = 0;                        // index among the visible GPUs
    std::uint64_t memory_limit_bytes = 0;  // 0: as much as the card has
};

/// The CUDA backend on one GPU. Throws kUnsupported when the program was built without CUDA or the
/// GPU is older than compute capability 8.0, kDevice when CUDA or cuBLAS cannot start.
std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options = {});

/// Positions at whose multiples the CPU form of lightning attention cuts its tiles.
inline constexpr std::int64_t kLightningTile = 64;

}  // namespace longview::kernels

// Where each weight of the text model lies, and handing it to the decoder layer by layer. The
// decoder does not know the tier a weight comes from.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/runtime/weight_source.h"
#include "llm/checkpoint/config.h"

namespace longview::llm {

/// One decoder layer's weights in memory of the backend. Shapes in model-spec 3.1, 4, 5.
struct LayerWeights {
    AttentionKind kind = AttentionKind::kLightning;
    const float* input_norm = nullptr;           // [hidden]
    const float* post_attention_norm = nullptr;  // [hidden]
    // lightning
    WeightView qkv;                         // [heads * 3 * head_dim, hidden]
    WeightView output_gate;                 // [heads * head_dim, hidden]
    const float* attention_norm = nullptr;  // [heads * head_dim]
    const float* slopes = nullptr;          // [heads]
    // softmax
    WeightView q, k, v;
    // both
    WeightView out;     // [hidden, heads * head_dim]
    WeightView router;  // [experts, hidden] kF32
    std::span<const kernels::ExpertWeights> experts;
};

/// Decay rate of every head of a lightning layer (model-spec 3.3): 2^(-8 (h+1) / heads) times
/// 1 - layer / (layers - 1) + 1e-5.
std::vector<float> lightning_slopes(int heads, int layer, int num_layers);

class WeightStore {
  public:
    /// Places all weights. The source must outlive the store. `progress` hears 0 ... 1.
    /// Errors: kMemory, kDevice, and those of the source.
    WeightStore(kernels::Backend& backend, const ModelConfig& config, const WeightSource& source,
                const std::function<void(double)>& progress = {});
    ~WeightStore();

    const LayerWeights& layer(int index) const;
    WeightView embedding() const;     // [vocab, hidden]
    WeightView head() const;          // [vocab, hidden]
    const float* final_norm() const;  // [hidden]

    /// Ids of embedding rows that are exactly zero: never trained, must not be chosen
    /// (model-spec 6). Found by scanning the source at load.
    std::span<const std::int32_t> zero_rows() const;
    /// Bytes this store allocated, and bytes it uses in place of the source.
    std::uint64_t allocated_bytes() const;
    std::uint64_t borrowed_bytes() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace longview::llm

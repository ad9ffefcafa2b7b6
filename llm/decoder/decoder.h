// The decoder of MiniMax-VL-01 (model-spec 2-6), written once against kernels/backend.h: prefill
// layer by layer over super-chunks, and the decode step. Used from the engine's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "llm/checkpoint/config.h"
#include "llm/decoder/sequence_state.h"
#include "llm/store/weight_store.h"

namespace longview::llm {

struct DecoderOptions {
    /// Tokens a kernel call handles at once; results do not depend on it.
    std::int64_t chunk_tokens = 512;
    /// Tokens that go through a layer before the next layer; results do not depend on it.
    std::int64_t super_chunk_tokens = 65536;
    /// Called after each layer of a prefill chunk with the residual stream of those rows
    /// (backend memory) and the position of the first; for tests.
    std::function<void(int layer, std::int64_t position, ConstMatrix rows)> layer_tap;
};

/// Rows that replace the embeddings of positions, such as picture features.
struct RowsAt {
    std::int64_t index = 0;  // into the ids of this prefill
    ConstMatrix rows;        // [count, hidden], backend memory
};

struct PrefillInput {
    std::span<const std::int32_t> ids;
    std::vector<RowsAt> rows;  // not overlapping
    /// Positions (absolute, ascending, in (state.position(), state.position() + ids]) at which
    /// kernel calls end. Reading on from such a position gives bit for bit what one read gives.
    std::vector<std::int64_t> cuts;
    /// The cuts at which a copy of the state is wanted.
    std::vector<std::int64_t> checkpoints;
    /// Hears the work done so far, in units of cost.h.
    std::function<void(double)> progress;
};

struct PrefillResult {
    std::vector<SequenceState> checkpoints;  // in the order asked for
    /// [vocab] of the last position, backend memory, valid until the decoder's next call.
    const float* logits = nullptr;
};

class Decoder {
  public:
    /// All references must outlive the decoder.
    Decoder(kernels::Backend& backend, const ModelConfig& config, const WeightStore& weights,
            DecoderOptions options = {});
    ~Decoder();

    /// An empty sequence of this model.
    SequenceState new_state() const;

    /// Reads input.ids after what the state holds. On any error, cancelling included, the state
    /// is as before. Errors: kMemory, kDevice, kCancelled.
    PrefillResult prefill(SequenceState& state, const PrefillInput& input);

    /// Reads one token; logits [vocab] in backend memory, valid until the next call.
    /// state.prepare() must have made room. No allocation.
    const float* step(SequenceState& state, std::int32_t id);

    /// Bytes prefill() takes at most for so many tokens beyond the state itself.
    std::size_t workspace_bytes(std::int64_t tokens) const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace longview::llm

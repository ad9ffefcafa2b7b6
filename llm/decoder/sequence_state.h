// What a sequence must remember: the lightning matrices (constant size) and paged keys and values
// of the softmax layers. A value: it can be forked, and forks share memory until one is written.
// Used from the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "llm/checkpoint/config.h"

namespace longview::llm {

/// Sizes that two states must share to be interchangeable.
struct StateLayout {
    int lightning_layers = 0;
    int softmax_layers = 0;
    int heads = 0;
    int head_dim = 0;
    int kv_heads = 0;
    std::int64_t page_tokens = 0;
    DType kv_dtype = DType::kF32;

    bool operator==(const StateLayout&) const = default;
    /// [lightning_layers, heads, head_dim, head_dim] kF32
    std::size_t lightning_bytes() const;
    /// [softmax_layers, 2 (K, V), kv_heads, page_tokens, head_dim] kv_dtype
    std::size_t page_bytes() const;
    std::size_t bytes_at(std::int64_t tokens) const;
};

/// 256 positions a page: 10.5 MB at the real sizes in 16 bit, one allocation in 256 tokens.
StateLayout make_state_layout(const TextConfig& config, DType kv_dtype,
                              std::int64_t page_tokens = 256);

class SequenceState {
  public:
    /// An empty sequence. The backend must outlive all states made with it.
    SequenceState(kernels::Backend& backend, const StateLayout& layout);

    /// Another sequence with the same past. Costs nothing until one of the two is written.
    SequenceState fork() const { return *this; }

    const StateLayout& layout() const { return layout_; }
    std::int64_t position() const { return position_; }

    /// Makes the next `tokens` positions writable: takes pages, and copies of what is shared with
    /// other forks. Errors: kMemory; the state is then unchanged.
    void prepare(std::int64_t tokens);
    /// The positions written since prepare() now count. At most as many as were prepared.
    void advance(std::int64_t tokens);

    /// State of the i-th lightning layer, [heads, head_dim, head_dim]; writable after prepare().
    float* lightning(int i);
    /// Keys and values of the i-th softmax layer; valid until the next prepare().
    kernels::KvView kv(int i) const;

    /// Equal for two states only when they use the same buffers: prepare() gives a new one whenever
    /// it takes memory. What was recorded with these buffers can then be replayed.
    std::uint64_t memory_id() const { return memory_id_; }

    /// A state at an earlier `position` that shares the pages of this one; its lightning part is
    /// fresh memory, which the caller fills through lightning().
    SequenceState branch_at(std::int64_t position) const;

    // Raw access for the state file: host copies.
    const void* lightning_data() const;
    const std::vector<std::shared_ptr<Buffer>>& pages() const { return pages_; }
    kernels::Backend& backend() const { return *backend_; }

  private:
    void update_page_table();

    kernels::Backend* backend_;
    StateLayout layout_;
    std::int64_t position_ = 0;
    std::uint64_t memory_id_ = 0;
    std::shared_ptr<Buffer> lightning_;  // null: all zero, nothing written yet
    std::vector<std::shared_ptr<Buffer>> pages_;
    std::shared_ptr<Buffer> page_table_;  // [pages] addresses, backend memory
};

}  // namespace longview::llm

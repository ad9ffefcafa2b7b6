// States worth keeping, found again by the beginning of a prompt. Forks share pages, so an entry
// costs one lightning state and the pages no other entry has. Used from the engine's thread.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>

#include "llm/decoder/state_file.h"

namespace longview::llm {

class PrefixCache {
  public:
    /// Entries are dropped, least recently used first, while they hold more than this.
    explicit PrefixCache(std::uint64_t budget_bytes) : budget_(budget_bytes) {}

    /// Keeps a state whose positions are keys[0 .. state.position()).
    void insert(std::shared_ptr<const PositionKeys> keys, const SequenceState& state);

    /// A fork of the longest kept state that is a beginning of `keys` and shorter than them.
    std::optional<SequenceState> find(std::span<const std::uint64_t> keys);

    /// The most recently inserted or found entry.
    struct Entry {
        std::shared_ptr<const PositionKeys> keys;  // at least state.position() of them
        SequenceState state;
    };
    const Entry* latest() const { return entries_.empty() ? nullptr : &entries_.front(); }

    void clear() { entries_.clear(); }
    std::uint64_t bytes() const;

  private:
    void shrink();

    std::uint64_t budget_;
    std::list<Entry> entries_;  // most recently used first
};

}  // namespace longview::llm

#include "llm/engine/prefix_cache.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace longview::llm {
namespace {

/// Comparing a long prompt with every entry is the cost of a look-up; more entries than this gain
/// nothing, since each lies on the way of a recent conversation.
constexpr std::size_t kMaxEntries = 64;

bool begins_with(std::span<const std::uint64_t> keys, const PrefixCache::Entry& entry) {
    const auto n = static_cast<std::size_t>(entry.state.position());
    return n < keys.size() &&
           std::equal(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(n),
                      entry.keys->begin());
}

}  // namespace

void PrefixCache::insert(std::shared_ptr<const PositionKeys> keys, const SequenceState& state) {
    const auto n = static_cast<std::size_t>(state.position());
    LONGVIEW_CHECK(keys && keys->size() >= n, "one key for each position");
    if (n == 0) return;
    const auto same = [&](const Entry& e) {
        return e.state.position() == state.position() &&
               std::equal(e.keys->begin(), e.keys->begin() + static_cast<std::ptrdiff_t>(n),
                          keys->begin());
    };
    entries_.remove_if(same);
    entries_.push_front({std::move(keys), state.fork()});
    shrink();
}

std::optional<SequenceState> PrefixCache::find(std::span<const std::uint64_t> keys) {
    auto best = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
        const bool longer = best == entries_.end() || it->state.position() > best->state.position();
        if (longer && begins_with(keys, *it)) best = it;
    }
    if (best == entries_.end()) return std::nullopt;
    entries_.splice(entries_.begin(), entries_, best);
    return entries_.front().state.fork();
}

std::uint64_t PrefixCache::bytes() const {
    std::unordered_set<const void*> seen;
    std::uint64_t total = 0;
    for (const Entry& e : entries_) {
        if (seen.insert(e.state.lightning_data()).second)
            total += e.state.layout().lightning_bytes();
        for (const auto& page : e.state.pages())
            if (seen.insert(page.get()).second) total += e.state.layout().page_bytes();
    }
    return total;
}

void PrefixCache::shrink() {
    while (entries_.size() > kMaxEntries || (entries_.size() > 1 && bytes() > budget_))
        entries_.pop_back();
}

}  // namespace longview::llm

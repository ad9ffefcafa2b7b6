// Words that were merged before, so that frequent ones are merged once. Private to llm/tokenizer.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "llm/tokenizer/tokenizer.h"

namespace longview::llm {

/// Belongs to one call of encode. Each word has one slot; a newer word takes it over.
class WordCache {
  public:
    /// The longer the text, the more words are worth keeping. Short texts do without: filling the
    /// table would cost more than it saves.
    explicit WordCache(std::size_t text_bytes)
        : slots_(text_bytes < kWorthwhileBytes
                     ? 0
                     : std::bit_ceil(std::min(text_bytes / kBytesPerSlot, kMaxSlots))) {}

    void prefetch(std::uint64_t hash) const {
        if (!slots_.empty()) __builtin_prefetch(&slots_[at(hash)]);
    }

    /// Appends the ids of `word` where they are known.
    bool append(std::string_view word, std::uint64_t hash, std::vector<TokenId>& out) const {
        if (slots_.empty()) return false;
        const Slot& slot = slots_[at(hash)];
        if (slot.hash != hash || slot.length != word.size() ||
            std::memcmp(slot.word, word.data(), word.size()) != 0) {
            return false;
        }
        out.insert(out.end(), slot.ids, slot.ids + slot.count);
        return true;
    }
    void store(std::string_view word, std::uint64_t hash, std::span<const TokenId> ids) {
        if (slots_.empty() || word.size() > kMaxBytes || ids.size() > kMaxIds) return;
        Slot& slot = slots_[at(hash)];
        slot.hash = hash;
        slot.length = static_cast<std::uint8_t>(word.size());
        slot.count = static_cast<std::uint8_t>(ids.size());
        std::copy(word.begin(), word.end(), slot.word);
        std::copy(ids.begin(), ids.end(), slot.ids);
    }

  private:
    static constexpr std::size_t kMaxSlots = 65536;  // 4 MiB
    static constexpr std::size_t kBytesPerSlot = 128;
    static constexpr std::size_t kWorthwhileBytes = 16384;
    static constexpr std::size_t kMaxBytes = 22;
    static constexpr std::size_t kMaxIds = 8;
    struct alignas(64) Slot {  // one cache line
        std::uint64_t hash = 0;
        TokenId ids[kMaxIds] = {};
        char word[kMaxBytes] = {};
        std::uint8_t length = 0;  // 0: empty
        std::uint8_t count = 0;
    };

    std::size_t at(std::uint64_t hash) const { return hash & (slots_.size() - 1); }

    std::vector<Slot> slots_;
};

}  // namespace longview::llm

// The merges of a byte-level BPE and how they are applied to a word. Private to llm/tokenizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "llm/tokenizer/tokenizer.h"

namespace longview::llm {

/// Which pairs of tokens join, in which order of preference. Immutable once filled; usable from
/// several threads.
class BpeMerges {
  public:
    static constexpr std::uint32_t kNoRank = 0xFFFFFFFF;

    struct Merge {
        std::uint32_t rank = kNoRank;  // the lowest is applied first
        TokenId result = 0;
    };

    /// byte_ids[b] is the token of byte b.
    BpeMerges(std::span<const TokenId, 256> byte_ids, std::size_t merge_count);

    /// Ranks follow the order of calls. Returns false when the pair is already there.
    bool add(TokenId left, TokenId right, TokenId result);
    /// To be called once after the last add().
    void finish();

    /// Appends the tokens of `word`: starting from its bytes, of all pairs that can join the one
    /// of lowest rank, and of those the leftmost, is joined, until none is left (Sennrich et al.
    /// 2016, arXiv:1508.07909, as Hugging Face tokenizers and tiktoken apply it).
    /// Linear in memory, O(n log n) in time. word is below 4 GiB.
    void encode(std::string_view word, std::vector<TokenId>& out) const;

  private:
    struct Slot {
        std::uint64_t pair = kEmpty;
        Merge merge;
    };
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
    static std::uint64_t pair_key(TokenId left, TokenId right) {
        return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
               static_cast<std::uint32_t>(right);
    }
    std::size_t home(std::uint64_t pair) const {
        return static_cast<std::size_t>((pair * 0x9E3779B97F4A7C15ULL) >> shift_);
    }
    Merge find(TokenId left, TokenId right) const {
        const std::uint64_t pair = pair_key(left, right);
        for (std::size_t at = home(pair);; at = (at + 1) & mask_) {
            if (slots_[at].pair == pair) return slots_[at].merge;
            if (slots_[at].pair == kEmpty) return {};
        }
    }

    void encode_short(std::string_view word, std::vector<TokenId>& out) const;
    void encode_with_heap(std::string_view word, std::vector<TokenId>& out) const;
    void encode_by_rank(std::string_view word, std::vector<TokenId>& out) const;

    class Chain;

    std::vector<TokenId> byte_ids_;  // [256]
    std::vector<Merge> byte_pairs_;  // [256 * 256] merges of two bytes, the commonest look-up
    std::vector<Slot> slots_;
    std::size_t mask_ = 0;
    int shift_ = 0;
    std::uint32_t count_ = 0;
    // Every merge comes after all merges that make its parts: then joining never brings up a pair
    // of lower rank.
    bool ordered_ = true;
    std::vector<bool> used_;  // while adding: tokens that are part of a merge
};

}  // namespace longview::llm

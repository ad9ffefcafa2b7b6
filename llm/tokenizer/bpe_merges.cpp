#include "llm/tokenizer/bpe_merges.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "kernels/runtime/error.h"

namespace longview::llm {
namespace {

// Scanning all pairs for the lowest beats any queue up to about this length.
constexpr std::size_t kShortWord = 48;
// From here on the bookkeeping by rank pays, and memory begins to matter.
constexpr std::size_t kLongWord = 4096;

}  // namespace

BpeMerges::BpeMerges(std::span<const TokenId, 256> byte_ids, std::size_t merge_count)
    : byte_ids_(byte_ids.begin(), byte_ids.end()), slots_(std::bit_ceil(merge_count * 2 + 2)) {
    mask_ = slots_.size() - 1;
    shift_ = 64 - std::countr_zero(slots_.size());
}

bool BpeMerges::add(TokenId left, TokenId right, TokenId result) {
    const std::uint64_t pair = pair_key(left, right);
    std::size_t at = home(pair);
    for (; slots_[at].pair != kEmpty; at = (at + 1) & mask_) {
        if (slots_[at].pair == pair) return false;
    }
    slots_[at] = {pair, {count_, result}};

    const auto last = static_cast<std::size_t>(std::max({left, right, result}));
    if (last >= used_.size()) used_.resize(last + 1);
    if (used_[static_cast<std::size_t>(result)]) ordered_ = false;
    used_[static_cast<std::size_t>(left)] = true;
    used_[static_cast<std::size_t>(right)] = true;
    ++count_;
    return true;
}

void BpeMerges::finish() {
    used_ = {};
    byte_pairs_.resize(std::size_t{256} * 256);
    for (std::size_t a = 0; a < 256; ++a) {
        for (std::size_t b = 0; b < 256; ++b) {
            byte_pairs_[a << 8 | b] = find(byte_ids_[a], byte_ids_[b]);
        }
    }
}

void BpeMerges::encode(std::string_view word, std::vector<TokenId>& out) const {
    if (word.size() <= kShortWord) {
        encode_short(word, out);
    } else if (word.size() >= kLongWord && ordered_) {
        encode_by_rank(word, out);
    } else {
        encode_with_heap(word, out);
    }
}

void BpeMerges::encode_short(std::string_view word, std::vector<TokenId>& out) const {
    std::array<TokenId, kShortWord> ids;
    std::array<Merge, kShortWord> merges;  // merges[i] joins ids[i] and ids[i + 1]
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(word[i]); };
    std::size_t n = word.size();
    for (std::size_t i = 0; i < n; ++i) ids[i] = byte_ids_[byte(i)];
    for (std::size_t i = 0; i + 1 < n; ++i) {
        merges[i] = byte_pairs_[static_cast<std::size_t>(byte(i)) << 8 | byte(i + 1)];
    }
    while (n > 1) {
        std::size_t best = 0;
        for (std::size_t i = 1; i + 1 < n; ++i) {
            if (merges[i].rank < merges[best].rank) best = i;
        }
        if (merges[best].rank == kNoRank) break;
        ids[best] = merges[best].result;
        std::copy(ids.begin() + best + 2, ids.begin() + n, ids.begin() + best + 1);
        if (best + 2 < n) {
            std::copy(merges.begin() + best + 2, merges.begin() + n - 1, merges.begin() + best + 1);
        }
        --n;
        if (best > 0) merges[best - 1] = find(ids[best - 1], ids[best]);
        if (best + 1 < n) merges[best] = find(ids[best], ids[best + 1]);
    }
    out.insert(out.end(), ids.begin(), ids.begin() + n);
}

/// The tokens of a long word as a doubly linked list over its byte positions.
class BpeMerges::Chain {
  public:
    Chain(const BpeMerges& merges, std::string_view word)
        : merges_(merges), ids_(word.size()), next_(word.size()), before_(word.size()) {
        for (std::size_t i = 0; i < word.size(); ++i) {
            ids_[i] = merges.byte_ids_[static_cast<unsigned char>(word[i])];
            next_[i] = static_cast<std::uint32_t>(i + 1);
            before_[i] = static_cast<std::uint32_t>(i - 1);  // of 0: kEnd
        }
        next_.back() = kEnd;
    }

    static constexpr std::uint32_t kEnd = 0xFFFFFFFF;

    /// How the token at `at` joins the one behind it; no rank where it is gone or the last.
    Merge merge_at(std::uint32_t at) const {
        if (ids_[at] == kGone || next_[at] == kEnd) return {};
        return merges_.find(ids_[at], ids_[next_[at]]);
    }
    void join(std::uint32_t at, TokenId result) {
        const std::uint32_t gone = next_[at];
        ids_[at] = result;
        ids_[gone] = kGone;
        next_[at] = next_[gone];
        if (next_[at] != kEnd) before_[next_[at]] = at;
    }
    std::uint32_t before(std::uint32_t at) const { return before_[at]; }
    void append_to(std::vector<TokenId>& out) const {
        for (std::uint32_t at = 0; at != kEnd; at = next_[at]) out.push_back(ids_[at]);
    }

  private:
    static constexpr TokenId kGone = -1;

    const BpeMerges& merges_;
    std::vector<TokenId> ids_;
    std::vector<std::uint32_t> next_;
    std::vector<std::uint32_t> before_;
};

void BpeMerges::encode_with_heap(std::string_view word, std::vector<TokenId>& out) const {
    Chain chain(*this, word);
    // Rank and place in one number, so that the smallest is the next to join. An entry whose pair
    // has changed since is recognised by its rank.
    std::vector<std::uint64_t> heap;
    const auto entry = [&](std::uint32_t at) {
        return static_cast<std::uint64_t>(chain.merge_at(at).rank) << 32 | at;
    };
    const auto joins = [](std::uint64_t e) { return (e >> 32) != kNoRank; };
    for (std::uint32_t i = 0; i + 1 < word.size(); ++i) {
        if (const std::uint64_t e = entry(i); joins(e)) heap.push_back(e);
    }
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        const std::uint64_t top = heap.back();
        heap.pop_back();
        const auto at = static_cast<std::uint32_t>(top);
        const Merge merge = chain.merge_at(at);
        if (merge.rank != top >> 32) continue;
        chain.join(at, merge.result);
        for (const std::uint32_t changed : {chain.before(at), at}) {
            if (changed == Chain::kEnd) continue;
            if (const std::uint64_t e = entry(changed); joins(e)) {
                heap.push_back(e);
                std::push_heap(heap.begin(), heap.end(), std::greater<>());
            }
        }
    }
    chain.append_to(out);
}

// With ordered merges all places of a rank are known when its turn comes, so one list of places a
// rank does instead of a heap: 16 bytes for each byte of the word, and hardly slower per byte for a
// hundred megabytes than for a hundred kilobytes.
void BpeMerges::encode_by_rank(std::string_view word, std::vector<TokenId>& out) const {
    Chain chain(*this, word);
    std::map<std::uint32_t, std::vector<std::uint32_t>> places;  // rank: where it may apply
    for (std::uint32_t i = 0; i + 1 < word.size(); ++i) {
        if (const Merge m = chain.merge_at(i); m.rank != kNoRank) places[m.rank].push_back(i);
    }
    while (!places.empty()) {
        auto node = places.extract(places.begin());
        const std::uint32_t rank = node.key();
        std::vector<std::uint32_t>& list = node.mapped();
        if (!std::is_sorted(list.begin(), list.end())) std::sort(list.begin(), list.end());
        for (const std::uint32_t at : list) {
            const Merge merge = chain.merge_at(at);
            if (merge.rank != rank) continue;
            chain.join(at, merge.result);
            for (const std::uint32_t changed : {chain.before(at), at}) {
                if (changed == Chain::kEnd) continue;
                const Merge next = chain.merge_at(changed);
                if (next.rank != kNoRank) places[next.rank].push_back(changed);
            }
        }
    }
    chain.append_to(out);
}

}  // namespace longview::llm

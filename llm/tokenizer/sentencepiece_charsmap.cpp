// The normalisation table of a SentencePiece model: the library walks through it without checking
// where it goes, so every way is walked here first.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/sentencepiece_model.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

constexpr std::size_t kMaxUnits = std::size_t{1} << 20;  // the largest known table has 60 thousand
constexpr int kMaxMatches = 32;                          // what the library has room for

class CharsmapCheck {
  public:
    CharsmapCheck(std::string_view charsmap, std::string_view origin) : origin_(origin) {
        std::uint32_t trie_bytes = 0;
        if (charsmap.size() < sizeof(trie_bytes)) refuse("is cut off");
        std::memcpy(&trie_bytes, charsmap.data(), sizeof(trie_bytes));
        charsmap.remove_prefix(sizeof(trie_bytes));
        if (trie_bytes > charsmap.size() || trie_bytes % 4 != 0 || trie_bytes == 0 ||
            trie_bytes / 4 > kMaxUnits) {
            refuse("has a trie of " + std::to_string(trie_bytes) + " bytes in " +
                   std::to_string(charsmap.size()));
        }
        units_.resize(trie_bytes / 4);
        std::memcpy(units_.data(), charsmap.data(), trie_bytes);
        texts_ = charsmap.substr(trie_bytes);
        if (texts_.empty() || texts_.back() != '\0') refuse("has texts without an end");
        if (valid_utf8_prefix(texts_) != texts_.size()) refuse("has texts that are not UTF-8");
    }

    /// Walks all ways from the root, depth first, each node once.
    void run() {
        state_.assign(units_.size(), kNew);
        std::vector<Step> path{{0, 0}};
        state_[0] = kOpen;
        longest_.assign(units_.size(), 0);
        longest_[0] = matches_at(0);
        while (!path.empty()) {
            Step& step = path.back();
            if (step.label > 255) {
                const std::size_t node = step.node;
                path.pop_back();
                close(node, path);
                continue;
            }
            const auto label = static_cast<std::uint32_t>(step.label++);
            const std::size_t child = child_of(step.node, label);
            if (child == kNoChild) continue;
            if (state_[child] == kOpen) refuse("has a trie that leads back into itself");
            if (state_[child] == kDone) {
                note(step.node, longest_[child]);
                continue;
            }
            state_[child] = kOpen;
            longest_[child] = matches_at(child);
            path.push_back({child, 0});
        }
        if (longest_[0] > kMaxMatches) refuse("has more than 32 entries that begin each other");
    }

  private:
    struct Step {
        std::size_t node;
        int label;
    };
    enum State : unsigned char { kNew, kOpen, kDone };
    static constexpr std::size_t kNoChild = ~std::size_t{0};

    [[noreturn]] void refuse(const std::string& cause) const {
        throw Error(Category::kInput, std::string(origin_) +
                                          ": not a valid SentencePiece model: its normalisation "
                                          "table " +
                                          cause);
    }

    // The layout of a unit: bit 31 marks a value, bits 0-7 the label by which its parent leads
    // here, bit 8 that a value hangs below label 0, bits 10-30 the offset, scaled by bit 9.
    static std::uint32_t offset_of(std::uint32_t unit) {
        return (unit >> 10) << ((unit & (1U << 9)) >> 6);
    }

    /// Where `label` leads from `node`. Places past the end are refused even where the label would
    /// not match: the library reads them before it compares.
    std::size_t child_of(std::size_t node, std::uint32_t label) const {
        const std::size_t at = node ^ offset_of(units_[node]) ^ label;
        if (at >= units_.size()) refuse("leads out of its trie");
        const std::uint32_t unit = units_[at];
        return (unit & (0x80000000U | 0xFF)) == label ? at : kNoChild;
    }

    /// Checks the value of a node; 1 where it has one.
    int matches_at(std::size_t node) const {
        if ((units_[node] >> 8 & 1) == 0) return 0;
        const std::size_t at = node ^ offset_of(units_[node]);
        if (at >= units_.size()) refuse("leads out of its trie");
        const std::uint32_t text = units_[at] & 0x7FFFFFFF;
        if (text >= texts_.size() || (static_cast<unsigned char>(texts_[text]) & 0xC0) == 0x80) {
            refuse("points outside of its texts");
        }
        return 1;
    }

    void note(std::size_t parent, int below) {
        longest_[parent] = std::max(longest_[parent], matches_at(parent) + below);
    }
    void close(std::size_t node, const std::vector<Step>& path) {
        state_[node] = kDone;
        if (!path.empty()) note(path.back().node, longest_[node]);
    }

    std::string_view origin_;
    std::vector<std::uint32_t> units_;
    std::string_view texts_;
    std::vector<State> state_;
    std::vector<int> longest_;  // most values on a way from here down
};

}  // namespace

void check_charsmap(std::string_view charsmap, std::string_view origin) {
    CharsmapCheck(charsmap, origin).run();
}

}  // namespace longview::llm

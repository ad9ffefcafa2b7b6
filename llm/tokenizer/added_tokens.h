// Added tokens that are not special, found in text. Private to llm/tokenizer.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "llm/tokenizer/bpe_vocab.h"

namespace longview::llm {

/// Finds the leftmost, then longest, of a set of texts.
class AddedTokenMatcher {
  public:
    explicit AddedTokenMatcher(std::vector<BpeVocab::PlainToken> tokens);

    struct Match {
        std::size_t begin = 0;
        std::size_t length = 0;  // 0: none, begin is the end of the text
        TokenId id = -1;
    };
    Match find(std::string_view text, std::size_t begin) const;

    bool empty() const { return tokens_.empty(); }
    std::size_t longest() const { return longest_; }

  private:
    const BpeVocab::PlainToken* longest_at(std::string_view text) const;

    std::vector<BpeVocab::PlainToken> tokens_;  // sorted by text
    std::vector<bool> first_bytes_;
    std::size_t longest_ = 0;
};

}  // namespace longview::llm

#include "llm/tokenizer/added_tokens.h"

#include <algorithm>

namespace longview::llm {

AddedTokenMatcher::AddedTokenMatcher(std::vector<BpeVocab::PlainToken> tokens)
    : tokens_(std::move(tokens)), first_bytes_(256) {
    std::sort(tokens_.begin(), tokens_.end(),
              [](const auto& a, const auto& b) { return a.text < b.text; });
    for (const auto& token : tokens_) {
        longest_ = std::max(longest_, token.text.size());
        first_bytes_[static_cast<unsigned char>(token.text[0])] = true;
    }
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, std::size_t begin) const {
    for (std::size_t at = begin; at < text.size(); ++at) {
        if (!first_bytes_[static_cast<unsigned char>(text[at])]) continue;
        if (const auto* token = longest_at(text.substr(at))) {
            return {at, token->text.size(), token->id};
        }
    }
    return {text.size(), 0, -1};
}

/// The longest token that `text` begins with: narrows the sorted list byte by byte.
const BpeVocab::PlainToken* AddedTokenMatcher::longest_at(std::string_view text) const {
    const BpeVocab::PlainToken* best = nullptr;
    auto first = tokens_.begin();
    auto last = tokens_.end();
    for (std::size_t depth = 0; depth < text.size() && first != last; ++depth) {
        const auto byte = static_cast<unsigned char>(text[depth]);
        const auto at_depth = [depth](const BpeVocab::PlainToken& t) {
            return depth < t.text.size()
                       ? static_cast<int>(static_cast<unsigned char>(t.text[depth]))
                       : -1;
        };
        first =
            std::partition_point(first, last, [&](const auto& t) { return at_depth(t) < byte; });
        last =
            std::partition_point(first, last, [&](const auto& t) { return at_depth(t) <= byte; });
        if (first != last && first->text.size() == depth + 1) best = &*first;
    }
    return best;
}

}  // namespace longview::llm

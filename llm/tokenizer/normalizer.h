// The normalizer of tokenizer.json. Private to llm/tokenizer.
#pragma once

#include <unicode/normalizer2.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace longview::llm {

/// Rewrites text before it is split: NFC, NFD, NFKC, NFKD, Replace (String), Sequence of these.
/// What it changes is not undone by decoding: with a normaliser, decode(encode(x)) is the
/// normalised x.
class Normalizer {
  public:
    /// Errors: kInput, kUnsupported; `origin` is the file's name.
    Normalizer(const nlohmann::json& config, std::string_view origin);

    bool empty() const { return steps_.empty(); }
    /// `text` is valid UTF-8.
    /// Errors: kInput when the result would be larger than 4 GiB.
    std::string apply(std::string_view text) const;

  private:
    struct Step {
        const icu::Normalizer2* form = nullptr;  // null: replace
        std::string from, to;
    };
    void add(const nlohmann::json& config, std::string_view origin, int depth);

    std::vector<Step> steps_;
};

}  // namespace longview::llm

// Cuts text into pre-tokens. Private to llm/tokenizer.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longview::llm {

/// Pre-tokens in order: views into the text that was split.
using Pieces = std::vector<std::string_view>;

/// One stage of a pre-tokenizer. Immutable, usable from several threads.
class Splitter {
  public:
    virtual ~Splitter() = default;

    /// Appends pieces of text[begin, text.size()) to `pieces`, stopping after about `max_pieces`,
    /// and returns where it stopped: a place to go on from. `text` is valid UTF-8.
    ///
    /// With `final` false, more text may follow that is not known yet: only pieces are given that
    /// stay the same whatever it is, so the result may be `begin`.
    /// Errors: kUnsupported naming the pattern when matching exceeds its limits.
    virtual std::size_t split(std::string_view text, std::size_t begin, bool final,
                              std::size_t max_pieces, Pieces& pieces) const = 0;
};

/// The pattern of GPT-2, which ByteLevel applies with use_regex.
extern const std::string_view kGpt2Pattern;

/// A hand-written matcher, linear in the text, for a pattern that consists of known alternatives
/// (GPT-2, cl100k as Llama 3 and Qwen write it, o200k and their relatives); null when one of them
/// is not known. Matches cover the whole text, each becomes a piece.
std::unique_ptr<Splitter> make_known_splitter(std::string_view pattern);

/// What happens to the matches of a pattern, names as in tokenizer.json.
enum class SplitBehavior {
    kIsolated,
    kRemoved,
    kMergedWithPrevious,
    kMergedWithNext,
    kContiguous,
};

/// Any pattern, interpreted by PCRE2 with Oniguruma's meaning and with limits on time and memory.
/// `origin` names file and place for errors.
/// Errors: kUnsupported naming the construct, or PCRE2's complaint.
std::unique_ptr<Splitter> make_regex_splitter(std::string_view pattern, SplitBehavior behavior,
                                              bool invert, std::string_view origin);

/// The pattern in PCRE2's syntax. Visible for tests.
/// Errors: kUnsupported naming what PCRE2 would understand differently.
std::string translate_oniguruma(std::string_view pattern, std::string_view origin);

}  // namespace longview::llm

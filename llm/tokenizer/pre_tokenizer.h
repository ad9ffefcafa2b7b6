// The pre_tokenizer of tokenizer.json, interpreted. Private to llm/tokenizer.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string_view>
#include <vector>

#include "llm/tokenizer/splitter.h"

namespace longview::llm {

/// Stages that each cut the pieces of the one before. Immutable, usable from several threads.
class PreTokenizer {
  public:
    /// Understands Sequence, Split (Regex or String, every behaviour, invert), ByteLevel, Digits.
    /// `allow_known` false sends every pattern through PCRE2, for comparison in tests.
    /// Errors: kInput, kUnsupported; `origin` is the file's name.
    PreTokenizer(const nlohmann::json& config, std::string_view origin, bool allow_known = true);

    /// As Splitter::split, through all stages.
    std::size_t split(std::string_view text, std::size_t begin, bool final, std::size_t max_pieces,
                      Pieces& pieces) const;

    /// Whether text must get a space in front where it has none.
    bool add_prefix_space() const { return add_prefix_space_; }

  private:
    void add(const nlohmann::json& config, std::string_view origin, bool allow_known, int depth);
    void add_split(const nlohmann::json& config, std::string_view origin, bool allow_known);
    void add_byte_level(const nlohmann::json& config, std::string_view origin, bool allow_known);

    std::vector<std::unique_ptr<Splitter>> stages_;
    bool add_prefix_space_ = false;
    bool byte_level_ = false;
};

}  // namespace longview::llm

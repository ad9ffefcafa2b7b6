// Byte-level BPE as tokenizer.json describes it. Private to llm/tokenizer.
#pragma once

#include <atomic>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "llm/tokenizer/added_tokens.h"
#include "llm/tokenizer/bpe_merges.h"
#include "llm/tokenizer/bpe_vocab.h"
#include "llm/tokenizer/normalizer.h"
#include "llm/tokenizer/pre_tokenizer.h"
#include "llm/tokenizer/tokenizer.h"
#include "llm/tokenizer/tokenizer_config.h"

namespace longview::llm {

/// encode() follows Hugging Face tokenizers: added tokens, normaliser, pre-tokenizer, merges;
/// except that special tokens never match, and that invalid UTF-8 is encoded byte for byte. A
/// post-processor that puts tokens around a text is accepted but not applied: the chat format
/// places them.
class BpeTokenizer final : public Tokenizer {
  public:
    struct Files {
        SideFile tokenizer;
        SideFile tokenizer_config;
        SideFile generation_config;
        bool allow_known_patterns = true;  // false: every pattern goes through PCRE2
    };
    /// Errors: kInput naming file and cause, kUnsupported naming the construct.
    explicit BpeTokenizer(const Files& files);

    std::vector<TokenId> encode(std::string_view text) const override;
    std::vector<TokenId> encode_settled(std::string_view text, std::span<const std::size_t> ends,
                                        std::vector<std::size_t>& settled) const override;
    std::string_view bytes(TokenId id) const override { return vocab_.bytes(id); }
    std::string_view piece(TokenId id) const override { return vocab_.piece(id); }
    std::optional<TokenId> special(std::string_view text) const override {
        return vocab_.special(text);
    }
    bool is_special(TokenId id) const override { return vocab_.is_special(id); }
    bool defined(TokenId id) const override { return vocab_.defined(id); }
    TokenId size() const override { return vocab_.size(); }
    TokenId end_of_answer() const override { return end_of_answer_; }

  private:
    class Run;  // one call of encode

    BpeTokenizer(const Files& files, const nlohmann::json& parsed);
    void check_model(const nlohmann::json& model, std::string_view origin);
    void add_merges(const nlohmann::json& merges, std::string_view origin);
    bool is_whole(TokenId id) const;

    BpeVocab vocab_;
    BpeMerges merges_;
    PreTokenizer pre_tokenizer_;
    Normalizer normalizer_;
    AddedTokenMatcher added_;
    bool ignore_merges_ = false;
    TokenId end_of_answer_ = 0;
    // Whether the bytes of a token are encoded as that token alone; found out when first asked.
    enum class Whole : std::uint8_t { kUnknown, kYes, kNo };
    mutable std::vector<std::atomic<Whole>> whole_;
};

}  // namespace longview::llm

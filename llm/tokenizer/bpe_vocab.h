// The tokens of a byte-level tokenizer.json. Private to llm/tokenizer.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "llm/tokenizer/byte_string_map.h"
#include "llm/tokenizer/tokenizer.h"

namespace longview::llm {

/// Every token: as written, as bytes, special or not. Immutable once built.
class BpeVocab {
  public:
    /// Reads model.vocab and added_tokens of the parsed file and checks that ids are unique and
    /// that every byte has a token.
    /// Errors: kInput, kUnsupported; `origin` is the file's name.
    BpeVocab(const nlohmann::json& tokenizer, std::string_view origin);

    TokenId size() const { return static_cast<TokenId>(entries_.size()); }
    bool defined(TokenId id) const { return in_range(id) && at(id).kind != Kind::kHole; }
    bool is_special(TokenId id) const { return in_range(id) && at(id).kind == Kind::kSpecial; }
    std::string_view piece(TokenId id) const {
        return in_range(id) ? view(at(id).piece) : std::string_view();
    }
    std::string_view bytes(TokenId id) const {
        return in_range(id) ? view(at(id).bytes) : std::string_view();
    }

    /// The ordinary token that stands for exactly these bytes, or -1.
    TokenId find(std::string_view bytes, std::uint64_t hash) const {
        return static_cast<TokenId>(by_bytes_.find(
            bytes, hash, [this](std::uint32_t id) { return view(entries_[id].bytes); }));
    }
    void prefetch(std::uint64_t hash) const { by_bytes_.prefetch(hash); }
    TokenId find(std::string_view bytes) const { return find(bytes, hash_bytes(bytes)); }
    /// The token written like this in model.vocab ("Ġthe"), or -1.
    TokenId find_piece(std::string_view piece) const;

    std::optional<TokenId> special(std::string_view text) const;
    const std::array<TokenId, 256>& byte_ids() const { return byte_ids_; }

    /// Added tokens that are not special: matched in text before anything else.
    struct PlainToken {
        std::string text;
        TokenId id;
        bool normalized;
    };
    const std::vector<PlainToken>& plain_added() const { return plain_added_; }

  private:
    enum class Kind : std::uint8_t { kHole, kOrdinary, kRaw, kSpecial };
    struct Span {
        std::uint32_t begin = 0;
        std::uint32_t length = 0;
    };
    struct Entry {
        Span piece;
        Span bytes;
        Kind kind = Kind::kHole;
    };

    bool in_range(TokenId id) const {
        return id >= 0 && static_cast<std::size_t>(id) < entries_.size();
    }
    const Entry& at(TokenId id) const { return entries_[static_cast<std::size_t>(id)]; }
    std::string_view view(Span s) const { return {arena_.data() + s.begin, s.length}; }
    Span store(std::string_view text);

    void make_room(const nlohmann::json& vocab, const nlohmann::json& added,
                   std::string_view origin);
    void add_vocab(const nlohmann::json& vocab, std::string_view origin);
    void add_added(const nlohmann::json& token, std::string_view origin);
    void index(std::string_view origin);

    std::string arena_;
    std::vector<Entry> entries_;
    ByteStringMap by_bytes_;
    std::unordered_map<std::string, TokenId> raw_;  // in model.vocab, but not in the byte alphabet
    std::unordered_map<std::string, TokenId> special_;
    std::vector<PlainToken> plain_added_;
    std::array<TokenId, 256> byte_ids_{};
};

}  // namespace longview::llm

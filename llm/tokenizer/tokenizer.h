// Text to token ids and back, behind one interface for tokenizer.json (byte-level BPE) and
// SentencePiece .model files. Immutable after loading; usable from several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longview::llm {

using TokenId = std::int32_t;

class Tokenizer {
  public:
    virtual ~Tokenizer() = default;

    /// Ids of plain text. Never produces a special token, whatever the text says: "<image>" typed
    /// by a user is encoded as the characters. Invalid UTF-8 is encoded byte for byte.
    /// Errors: kInput when the text is larger than 4 GiB.
    virtual std::vector<TokenId> encode(std::string_view text) const = 0;

    /// The same, and for each of `ends` (ascending offsets into text) how many leading ids stay as
    /// they are whatever text follows text[0, end) instead: settled gets ends.size() counts,
    /// ascending, never too large. This base form does not look inside and counts 0.
    virtual std::vector<TokenId> encode_settled(std::string_view text,
                                                std::span<const std::size_t> ends,
                                                std::vector<std::size_t>& settled) const;

    /// The bytes that an id stands for; empty for special tokens and ids without an entry.
    virtual std::string_view bytes(TokenId id) const = 0;
    /// The entry as written in the file ("Ġthe", "<image>"), for display; empty for unused ids.
    virtual std::string_view piece(TokenId id) const = 0;

    /// Id of a special (added) token by its text.
    virtual std::optional<TokenId> special(std::string_view text) const = 0;
    virtual bool is_special(TokenId id) const = 0;
    /// True where the file defines this id.
    virtual bool defined(TokenId id) const = 0;
    /// One more than the largest defined id.
    virtual TokenId size() const = 0;
    /// Id that ends an answer, from tokenizer_config.json or generation_config.json, or
    /// <end_of_sentence>.
    virtual TokenId end_of_answer() const = 0;

    /// Concatenated bytes of all ids: decode(encode(x)) == x for any bytes x.
    std::string decode(std::span<const TokenId> ids) const;
};

/// Gives out whole UTF-8 characters of a stream of ids; incomplete ones wait, invalid bytes come
/// out as U+FFFD.
class StreamDecoder {
  public:
    explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
    /// Text that became complete with this id; may be empty.
    std::string push(TokenId id);
    /// What is left at the end, incomplete characters as U+FFFD.
    std::string finish();

  private:
    const Tokenizer* tokenizer_;
    std::string pending_;
};

/// Reads tokenizer.json, else tokenizer.model, of a checkpoint folder.
/// Errors: kNotFound, kInput naming file and cause, kUnsupported naming the construct.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder);

/// The same from bytes, for tests and fuzzing. Either config may be empty.
std::unique_ptr<Tokenizer> parse_bpe_tokenizer(std::string_view tokenizer_json,
                                               std::string_view tokenizer_config_json,
                                               std::string_view origin);
std::unique_ptr<Tokenizer> parse_sentencepiece_tokenizer(std::string_view model,
                                                         std::string_view origin);

}  // namespace longview::llm

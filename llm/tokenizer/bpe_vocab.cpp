#include "llm/tokenizer/bpe_vocab.h"

#include <algorithm>

#include "llm/tokenizer/json_access.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxId = std::int64_t{1} << 24;
constexpr std::size_t kMaxAdded = 100'000;
constexpr std::size_t kMaxAddedBytes = 4096;

/// The printable character that stands for a byte in GPT-2's alphabet: itself where Latin-1 prints
/// it, else the next free one from U+0100 on.
std::array<char32_t, 256> byte_alphabet() {
    std::array<char32_t, 256> alphabet{};
    char32_t free = 0x100;
    for (char32_t b = 0; b < 256; ++b) {
        const bool prints =
            (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
        alphabet[b] = prints ? b : free++;
    }
    return alphabet;
}

/// Turns pieces back into bytes.
class ByteDecoder {
  public:
    ByteDecoder() {
        byte_of_.fill(-1);
        const auto alphabet = byte_alphabet();
        for (std::size_t b = 0; b < 256; ++b) byte_of_[alphabet[b]] = static_cast<int>(b);
    }
    /// False when a character is not in the alphabet.
    bool decode(std::string_view piece, std::string& bytes) const {
        bytes.clear();
        const char* p = piece.data();
        const char* const end = p + piece.size();
        while (p < end) {
            const Utf8Char c = decode_utf8(p, end);
            if (!c.valid || c.code >= byte_of_.size() || byte_of_[c.code] < 0) return false;
            bytes.push_back(static_cast<char>(byte_of_[c.code]));
            p += c.length;
        }
        return !bytes.empty();
    }

  private:
    std::array<int, 0x144> byte_of_{};  // the alphabet ends at U+0143
};

const ByteDecoder& byte_decoder() {
    static const ByteDecoder decoder;
    return decoder;
}

TokenId id_of(const json& value, std::string_view what, std::string_view origin) {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kMaxId) {
        bad_input(origin, "the id of " + quote_for_message(what) + " is " + describe_json(value) +
                              "; expected a whole number from 0 to 16777215");
    }
    return value.get<TokenId>();
}

}  // namespace

BpeVocab::BpeVocab(const json& tokenizer, std::string_view origin) {
    const json& vocab = field(field(tokenizer, "model"), "vocab");
    if (!vocab.is_object()) bad_input(origin, "model.vocab is missing or not an object");
    const json& added = field(tokenizer, "added_tokens");
    if (!added.is_null() && (!added.is_array() || added.size() > kMaxAdded)) {
        bad_input(origin, "added_tokens must be a list of at most 100000 tokens");
    }
    make_room(vocab, added, origin);
    add_vocab(vocab, origin);
    for (const json& token : added) add_added(token, origin);
    index(origin);
}

/// Sizes the tables once, and refuses ids so far apart that the table would be mostly holes.
void BpeVocab::make_room(const json& vocab, const json& added, std::string_view origin) {
    TokenId largest = 0;
    std::size_t bytes = 0;
    for (const auto& [piece, value] : vocab.items()) {
        largest = std::max(largest, id_of(value, piece, origin));
        bytes += piece.size() * 2;
    }
    for (const json& token : added) {
        if (!token.is_object()) bad_input(origin, "an entry of added_tokens is not an object");
        const std::string& content = string_field(token, "content", origin);
        largest = std::max(largest, id_of(field(token, "id"), content, origin));
        bytes += content.size() * 2;
    }
    const std::size_t count = vocab.size() + added.size();
    if (static_cast<std::size_t>(largest) > count * 16 + 65536) {
        bad_input(origin, "the largest id is " + std::to_string(largest) + ", but there are only " +
                              std::to_string(count) + " tokens");
    }
    arena_.reserve(bytes);
    entries_.resize(static_cast<std::size_t>(largest) + 1);
}

BpeVocab::Span BpeVocab::store(std::string_view text) {
    const Span span{static_cast<std::uint32_t>(arena_.size()),
                    static_cast<std::uint32_t>(text.size())};
    arena_.append(text);
    return span;
}

void BpeVocab::add_vocab(const json& vocab, std::string_view origin) {
    std::string bytes;
    for (const auto& [piece, value] : vocab.items()) {
        const TokenId id = id_of(value, piece, origin);
        Entry& entry = entries_[static_cast<std::size_t>(id)];
        if (entry.kind != Kind::kHole) {
            bad_input(origin, "the id " + std::to_string(id) + " is given to both " +
                                  quote_for_message(view(entry.piece)) + " and " +
                                  quote_for_message(piece));
        }
        entry.piece = store(piece);
        const bool ordinary = byte_decoder().decode(piece, bytes);
        entry.bytes = ordinary ? store(bytes) : entry.piece;
        entry.kind = ordinary ? Kind::kOrdinary : Kind::kRaw;
        if (!ordinary) raw_.emplace(piece, id);
    }
}

void BpeVocab::add_added(const json& token, std::string_view origin) {
    const std::string& content = string_field(token, "content", origin);
    const TokenId id = id_of(field(token, "id"), content, origin);
    const std::string name = "the added token " + quote_for_message(content);
    if (content.empty() || content.size() > kMaxAddedBytes) {
        bad_input(origin, "an added token has " + std::to_string(content.size()) +
                              " bytes; expected 1 to 4096");
    }
    for (const char* option : {"single_word", "lstrip", "rstrip"}) {
        if (bool_field(token, option, false, origin)) {
            unsupported(origin, name + " has " + option + ", which is not supported");
        }
    }
    Entry& entry = entries_[static_cast<std::size_t>(id)];
    if (entry.kind != Kind::kHole && view(entry.piece) != content) {
        bad_input(origin, name + " has the id " + std::to_string(id) + " of " +
                              quote_for_message(view(entry.piece)));
    }
    const bool special = bool_field(token, "special", false, origin);
    if (special ? !special_.emplace(content, id).second
                : std::any_of(plain_added_.begin(), plain_added_.end(),
                              [&](const PlainToken& t) { return t.text == content; })) {
        bad_input(origin, name + " is listed twice");
    }
    if (!special) {
        plain_added_.push_back({content, id, bool_field(token, "normalized", true, origin)});
    }
    if (entry.kind == Kind::kHole) entry.piece = store(content);
    // The text of an added token is literal even where it could be read in the byte alphabet.
    entry.bytes = special ? Span{} : entry.piece;
    entry.kind = special ? Kind::kSpecial : Kind::kRaw;
    raw_.insert_or_assign(content, id);
}

/// Makes ordinary tokens findable by their bytes.
void BpeVocab::index(std::string_view origin) {
    by_bytes_ = ByteStringMap(entries_.size());
    for (std::uint32_t id = 0; id < entries_.size(); ++id) {
        if (entries_[id].kind != Kind::kOrdinary) continue;
        by_bytes_.insert(view(entries_[id].bytes), id,
                         [this](std::uint32_t other) { return view(entries_[other].bytes); });
    }
    for (std::size_t b = 0; b < 256; ++b) {
        const char byte = static_cast<char>(b);
        byte_ids_[b] = find(std::string_view(&byte, 1));
        if (byte_ids_[b] < 0) {
            std::string symbol;
            append_utf8(symbol, byte_alphabet()[b]);
            bad_input(origin, "model.vocab has no token for the byte " + std::to_string(b) +
                                  " (written " + quote_for_message(symbol) +
                                  "), so some text could not be encoded");
        }
    }
}

TokenId BpeVocab::find_piece(std::string_view piece) const {
    std::string bytes;
    if (byte_decoder().decode(piece, bytes)) {
        if (const TokenId id = find(bytes); id >= 0) return id;
    }
    const auto found = raw_.find(std::string(piece));
    return found == raw_.end() ? -1 : found->second;
}

std::optional<TokenId> BpeVocab::special(std::string_view text) const {
    const auto found = special_.find(std::string(text));
    if (found == special_.end()) return std::nullopt;
    return found->second;
}

}  // namespace longview::llm

// SentencePiece models, encoded by its library. The library gets a model rebuilt from what our own
// reader checked, and text in pieces of bounded size.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <unordered_map>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/strict_json.h"
#include "llm/tokenizer/sentencepiece_model.h"
#include "llm/tokenizer/tokenizer.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

using Piece = SentencePieceModel::Piece;
using Type = SentencePieceModel::Type;

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, what models write for a space
constexpr std::size_t kBlockBytes = 65536;
constexpr std::size_t kMaxBlockBytes = std::size_t{16} << 20;  // the library takes 50 times as much
constexpr std::size_t kMaxTextBytes = std::size_t{4} << 30;

bool is_control(Type type) {
    return type == Type::kControl || type == Type::kUnknown;
}

/// Whether a piece can reach across a place where a space follows something else.
bool crosses_words(std::string_view text) {
    while (text.starts_with(kSpaceMark)) text.remove_prefix(kSpaceMark.size());
    return text.find(kSpaceMark) != std::string_view::npos;
}

/// decode(encode(x)) == x for any bytes when the model neither normalises, nor drops repeated
/// spaces, nor puts a space in front (add_dummy_prefix: that space comes out again).
class SentencePieceTokenizer final : public Tokenizer {
  public:
    SentencePieceTokenizer(SentencePieceModel model, std::string_view origin);

    std::vector<TokenId> encode(std::string_view text) const override;
    std::string_view bytes(TokenId id) const override {
        return defined(id) ? bytes_[static_cast<std::size_t>(id)] : std::string_view();
    }
    std::string_view piece(TokenId id) const override {
        return defined(id) ? at(id).text : std::string_view();
    }
    std::optional<TokenId> special(std::string_view text) const override {
        const auto found = special_.find(std::string(text));
        if (found == special_.end()) return std::nullopt;
        return found->second;
    }
    bool is_special(TokenId id) const override { return defined(id) && is_control(at(id).type); }
    bool defined(TokenId id) const override {
        return id >= 0 && static_cast<std::size_t>(id) < model_.pieces.size();
    }
    TokenId size() const override { return static_cast<TokenId>(model_.pieces.size()); }
    TokenId end_of_answer() const override { return end_of_answer_; }

  private:
    const Piece& at(TokenId id) const { return model_.pieces[static_cast<std::size_t>(id)]; }
    void load_library(std::string_view origin);
    void encode_bytes(std::string_view bytes, std::vector<TokenId>& ids) const;
    void encode_stretch(std::string_view text, std::vector<TokenId>& ids) const;
    void encode_block(std::string_view text, std::vector<TokenId>& ids) const;
    std::size_t block_length(std::string_view text) const;

    SentencePieceModel model_;
    std::vector<std::string> bytes_;
    std::unordered_map<std::string, TokenId> special_;
    std::vector<TokenId> byte_ids_;   // [256]
    bool prefix_space_ = false;       // put in front by us, once
    bool cut_between_words_ = false;  // encoding word by word gives the same
    TokenId end_of_answer_ = 0;
    sentencepiece::SentencePieceProcessor library_;
};

SentencePieceTokenizer::SentencePieceTokenizer(SentencePieceModel model, std::string_view origin)
    : model_(std::move(model)), byte_ids_(256) {
    bool crosses = false;
    for (std::size_t i = 0; i < model_.pieces.size(); ++i) {
        const Piece& piece = model_.pieces[i];
        const auto id = static_cast<TokenId>(i);
        std::string bytes;
        if (is_control(piece.type)) {
            special_.emplace(piece.text, id);
        } else if (piece.type == Type::kByte) {
            bytes.push_back(static_cast<char>(std::stoi(piece.text.substr(3, 2), nullptr, 16)));
            byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
        } else {
            crosses |= crosses_words(piece.text);
            for (std::string_view rest = piece.text; !rest.empty();) {
                const bool space = rest.starts_with(kSpaceMark);
                bytes.push_back(space ? ' ' : rest[0]);
                rest.remove_prefix(space ? kSpaceMark.size() : 1);
            }
        }
        bytes_.push_back(std::move(bytes));
    }
    const auto eos = special(model_.eos_piece);
    if (!eos) {
        throw Error(Category::kUnsupported, std::string(origin) + ": has no control piece " +
                                                quote_for_message(model_.eos_piece) +
                                                ", which ends an answer");
    }
    end_of_answer_ = *eos;
    if (!model_.remove_extra_whitespaces) {
        prefix_space_ = std::exchange(model_.add_dummy_prefix, false);
        cut_between_words_ = !crosses && !model_.whitespace_as_suffix && model_.charsmap.empty();
    }
    load_library(origin);
}

void SentencePieceTokenizer::load_library(std::string_view origin) {
    const std::string serialized = serialize_for_library(model_);
    std::string cause;
    try {
        const auto status = library_.LoadFromSerializedProto(serialized);
        if (!status.ok()) cause = status.ToString();
    } catch (const std::exception& error) {
        cause = error.what();
    }
    if (!cause.empty() || library_.GetPieceSize() != size()) {
        throw Error(
            Category::kInput,
            std::string(origin) + ": the SentencePiece library refuses the model: " + cause);
    }
}

std::vector<TokenId> SentencePieceTokenizer::encode(std::string_view text) const {
    if (text.size() >= kMaxTextBytes) {
        throw Error(Category::kInput, "the text has " + std::to_string(text.size()) +
                                          " bytes; at most 4 GiB can be encoded at once");
    }
    std::vector<TokenId> ids;
    std::string prefixed;
    if (prefix_space_ && !text.empty()) {
        prefixed.append(1, ' ').append(text);
        text = prefixed;
    }
    while (!text.empty()) {
        const std::size_t valid = valid_utf8_prefix(text);
        encode_stretch(text.substr(0, valid), ids);
        text.remove_prefix(valid);
        if (text.empty()) break;
        const Utf8Char bad = decode_utf8(text.data(), text.data() + text.size());
        encode_bytes(text.substr(0, static_cast<std::size_t>(bad.length)), ids);
        text.remove_prefix(static_cast<std::size_t>(bad.length));
    }
    return ids;
}

void SentencePieceTokenizer::encode_bytes(std::string_view bytes, std::vector<TokenId>& ids) const {
    for (const char c : bytes) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
}

/// The library would turn a U+2581 of the text into a space: it is encoded as its three bytes.
void SentencePieceTokenizer::encode_stretch(std::string_view text,
                                            std::vector<TokenId>& ids) const {
    while (!text.empty()) {
        std::string_view plain = text.substr(0, text.find(kSpaceMark));
        text.remove_prefix(plain.size());
        while (!plain.empty()) {
            const std::size_t length = block_length(plain);
            encode_block(plain.substr(0, length), ids);
            plain.remove_prefix(length);
        }
        for (; text.starts_with(kSpaceMark); text.remove_prefix(kSpaceMark.size())) {
            encode_bytes(kSpaceMark, ids);
        }
    }
}

/// How much of the text to encode at once: all of it, or up to a space behind a word.
std::size_t SentencePieceTokenizer::block_length(std::string_view text) const {
    if (cut_between_words_ && text.size() > kBlockBytes) {
        for (std::size_t at = kBlockBytes; at < text.size(); ++at) {
            if (text[at] == ' ' && text[at - 1] != ' ') return at;
        }
    }
    if (text.size() > kMaxBlockBytes) {
        throw Error(Category::kInput,
                    "this SentencePiece model can encode at most 16 MiB of text without a cut; the "
                    "text has " +
                        std::to_string(text.size()) + " bytes");
    }
    return text.size();
}

void SentencePieceTokenizer::encode_block(std::string_view text, std::vector<TokenId>& ids) const {
    std::vector<int> block;
    const auto status = library_.Encode(text, &block);
    if (!status.ok()) {
        throw Error(Category::kInput, "SentencePiece cannot encode the text: " + status.ToString());
    }
    for (const int id : block) {
        LONGVIEW_CHECK(defined(id) && !is_special(id), "text never becomes a control piece");
        ids.push_back(id);
    }
}

}  // namespace

std::unique_ptr<Tokenizer> parse_sentencepiece_tokenizer(std::string_view model,
                                                         std::string_view origin) {
    return std::make_unique<SentencePieceTokenizer>(parse_sentencepiece_model(model, origin),
                                                    origin);
}

}  // namespace longview::llm

// A SentencePiece .model file, read strictly before its library sees anything of it. Private to
// llm/tokenizer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longview::llm {

struct SentencePieceModel {
    enum class Type : std::uint8_t {
        kNormal = 1,
        kUnknown = 2,
        kControl = 3,
        kUserDefined = 4,
        kUnused = 5,
        kByte = 6,
    };
    struct Piece {
        std::string text;
        float score = 0.0F;
        Type type = Type::kNormal;
    };
    enum class Kind { kUnigram = 1, kBpe = 2 };

    std::vector<Piece> pieces;
    Kind kind = Kind::kUnigram;
    std::string eos_piece = "</s>";
    bool whitespace_as_suffix = false;
    bool add_dummy_prefix = true;
    bool remove_extra_whitespaces = true;
    std::string charsmap;  // precompiled normalisation; empty: none
};

/// Reads and checks a whole file: wire format, UTF-8, scores, types, one unknown piece, the 256
/// byte pieces, no piece twice, and the structure of the normalisation table.
/// Errors: kInput naming cause and byte, kUnsupported naming the construct.
SentencePieceModel parse_sentencepiece_model(std::string_view file, std::string_view origin);

/// The model as a protocol buffer that holds what was checked and nothing else.
std::string serialize_for_library(const SentencePieceModel& model);

/// Throws kInput unless every walk through the table stays inside it: a double-array trie (as
/// Darts-clone lays it out) of uint32, then the replacement texts.
void check_charsmap(std::string_view charsmap, std::string_view origin);

}  // namespace longview::llm

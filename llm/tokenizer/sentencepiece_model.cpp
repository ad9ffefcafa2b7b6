#include "llm/tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <unordered_set>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/strict_json.h"
#include "llm/tokenizer/protobuf_reader.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

using Piece = SentencePieceModel::Piece;
using Type = SentencePieceModel::Type;

constexpr std::size_t kMaxFileBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxPieces = std::size_t{1} << 21;
// The library keeps lists of fixed size for pieces that are prefixes of one another: 1024 for all,
// 64 for user-defined ones.
constexpr std::size_t kMaxPieceBytes = 512;
constexpr std::size_t kMaxNestedSymbols = 48;
constexpr float kMaxScore = 1e9F;

bool in_library_trie(Type type) {
    return type == Type::kNormal || type == Type::kUserDefined || type == Type::kUnused;
}

Piece read_piece(ProtobufReader reader) {
    Piece piece;
    ProtobufReader::Field field;
    while (reader.next(field)) {
        if (field.number == 1) {
            piece.text = reader.text(field);
        } else if (field.number == 2) {
            piece.score = reader.real(field);
            if (!(std::abs(piece.score) <= kMaxScore)) {
                reader.refuse("the score of a piece is not a sensible number", field);
            }
        } else if (field.number == 3) {
            const std::uint64_t type = reader.number(field);
            if (type < 1 || type > 6) reader.refuse("a piece has an unknown type", field);
            piece.type = static_cast<Type>(type);
        }
    }
    if (piece.text.empty() || piece.text.size() > kMaxPieceBytes) {
        reader.refuse("a piece has " + std::to_string(piece.text.size()) +
                      " bytes; expected 1 to 512");
    }
    if (valid_utf8_prefix(piece.text) != piece.text.size() ||
        piece.text.find('\0') != std::string::npos) {
        reader.refuse("a piece is not valid UTF-8 text");
    }
    return piece;
}

void read_trainer(ProtobufReader reader, std::string_view origin, SentencePieceModel& model) {
    ProtobufReader::Field field;
    while (reader.next(field)) {
        if (field.number == 3) {
            const std::uint64_t kind = reader.number(field);
            if (kind != 1 && kind != 2) {
                throw Error(Category::kUnsupported,
                            std::string(origin) + ": the model type is " + std::to_string(kind) +
                                "; only unigram (1) and BPE (2) are supported");
            }
            model.kind = static_cast<SentencePieceModel::Kind>(kind);
        } else if (field.number == 24) {
            model.whitespace_as_suffix = reader.flag(field);
        } else if (field.number == 46) {
            model.eos_piece = reader.text(field);
        }
    }
}

void read_normalizer(ProtobufReader reader, std::string_view origin, SentencePieceModel& model) {
    ProtobufReader::Field field;
    while (reader.next(field)) {
        if (field.number == 2) {
            model.charsmap = reader.text(field);
            if (!model.charsmap.empty()) check_charsmap(model.charsmap, origin);
        } else if (field.number == 3) {
            model.add_dummy_prefix = reader.flag(field);
        } else if (field.number == 4) {
            model.remove_extra_whitespaces = reader.flag(field);
        } else if (field.number == 5 && !reader.flag(field)) {
            throw Error(Category::kUnsupported,
                        std::string(origin) + ": spaces are not escaped (escape_whitespaces)");
        }
    }
}

/// The byte that "<0xE2>" stands for, or -1.
int byte_of(std::string_view text) {
    const auto digit = [](char c) {
        return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
    const int high = digit(text[3]), low = digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

[[noreturn]] void refuse(std::string_view origin, const std::string& cause) {
    throw Error(Category::kInput,
                std::string(origin) + ": not a valid SentencePiece model: " + cause);
}

void check_pieces(const SentencePieceModel& model, std::string_view origin) {
    std::unordered_set<std::string_view> seen;
    std::array<bool, 256> bytes{};
    std::size_t unknown = 0, byte_count = 0, normal = 0;
    for (const Piece& piece : model.pieces) {
        if (!seen.insert(piece.text).second) {
            refuse(origin, "the piece " + quote_for_message(piece.text) + " is there twice");
        }
        if (piece.type == Type::kByte) {
            const int byte = byte_of(piece.text);
            if (byte < 0) {
                refuse(origin, "the byte piece " + quote_for_message(piece.text) +
                                   " is not written like <0x41>");
            }
            bytes[static_cast<std::size_t>(byte)] = true;
            ++byte_count;
        } else if (!in_library_trie(piece.type)) {
            // The library looks single characters up among all pieces: a control piece of one
            // character could be typed.
            const char* const p = piece.text.data();
            if (static_cast<std::size_t>(decode_utf8(p, p + piece.text.size()).length) ==
                piece.text.size()) {
                refuse(origin, "the control piece " + quote_for_message(piece.text) +
                                   " has one character only, so that text could become it");
            }
        }
        unknown += piece.type == Type::kUnknown ? 1 : 0;
        normal += piece.type == Type::kNormal ? 1 : 0;
    }
    if (unknown != 1) {
        refuse(origin, "it has " + std::to_string(unknown) + " unknown pieces; expected one");
    }
    if (normal == 0) refuse(origin, "it has no pieces of text");
    if (byte_count == 0) {
        throw Error(Category::kUnsupported,
                    std::string(origin) +
                        ": has no byte pieces (byte_fallback), so text outside "
                        "of its vocabulary would be lost");
    }
    if (byte_count != 256) {
        refuse(origin, "it has " + std::to_string(byte_count) + " byte pieces; expected 256");
    }
}

/// User-defined symbols that each begin the next: the library follows 64 at most.
void check_nesting(const SentencePieceModel& model, std::string_view origin) {
    std::vector<std::string_view> symbols;
    for (const Piece& piece : model.pieces) {
        if (piece.type == Type::kUserDefined) symbols.push_back(piece.text);
    }
    std::sort(symbols.begin(), symbols.end());
    std::vector<std::string_view> open;
    for (const std::string_view symbol : symbols) {
        while (!open.empty() && !symbol.starts_with(open.back())) open.pop_back();
        open.push_back(symbol);
        if (open.size() > kMaxNestedSymbols) {
            throw Error(Category::kUnsupported,
                        std::string(origin) +
                            ": more than 48 user-defined symbols begin each "
                            "other");
        }
    }
}

// Writing protocol buffers: only what serialize_for_library needs.
void put_varint(std::string& out, std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
    out.push_back(static_cast<char>(value));
}
void put_number(std::string& out, std::uint32_t field, std::uint64_t value) {
    put_varint(out, field << 3);
    put_varint(out, value);
}
void put_bytes(std::string& out, std::uint32_t field, std::string_view bytes) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.size());
    out.append(bytes);
}
void put_float(std::string& out, std::uint32_t field, float value) {
    put_varint(out, field << 3 | 5);
    const auto bits = std::bit_cast<std::uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(bits >> shift));
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view file, std::string_view origin) {
    if (file.size() > kMaxFileBytes) {
        throw Error(Category::kInput, std::string(origin) + ": has " + std::to_string(file.size()) +
                                          " bytes; the limit is 64 MiB");
    }
    SentencePieceModel model;
    ProtobufReader reader(file, 0, origin);
    ProtobufReader::Field field;
    bool has_trainer = false, has_normalizer = false;
    while (reader.next(field)) {
        if (field.number == 1) {
            if (model.pieces.size() == kMaxPieces) reader.refuse("more than 2097152 pieces", field);
            model.pieces.push_back(read_piece(reader.message(field)));
        } else if (field.number == 2) {
            if (has_trainer) reader.refuse("two trainer specifications", field);
            has_trainer = true;
            read_trainer(reader.message(field), origin, model);
        } else if (field.number == 3) {
            if (has_normalizer) reader.refuse("two normalizer specifications", field);
            has_normalizer = true;
            read_normalizer(reader.message(field), origin, model);
        }
    }
    check_pieces(model, origin);
    check_nesting(model, origin);
    return model;
}

std::string serialize_for_library(const SentencePieceModel& model) {
    std::string out;
    for (const Piece& piece : model.pieces) {
        std::string message;
        put_bytes(message, 1, piece.text);
        put_float(message, 2, piece.score);
        put_number(message, 3, static_cast<std::uint64_t>(piece.type));
        put_bytes(out, 1, message);
    }
    std::string trainer;
    put_number(trainer, 3, static_cast<std::uint64_t>(model.kind));
    put_number(trainer, 24, model.whitespace_as_suffix ? 1 : 0);
    put_number(trainer, 35, 1);  // byte_fallback
    put_bytes(out, 2, trainer);
    std::string normalizer;
    put_bytes(normalizer, 2, model.charsmap);
    put_number(normalizer, 3, model.add_dummy_prefix ? 1 : 0);
    put_number(normalizer, 4, model.remove_extra_whitespaces ? 1 : 0);
    put_bytes(out, 3, normalizer);
    return out;
}

}  // namespace longview::llm

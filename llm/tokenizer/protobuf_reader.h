// The wire format of protocol buffers, read strictly. Private to llm/tokenizer.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "kernels/runtime/error.h"

namespace longview::llm {

/// Steps through the fields of one message. Every length is checked against the bytes at hand;
/// groups, varints over 64 bits and field numbers out of range are refused.
class ProtobufReader {
  public:
    /// `offset` is where `bytes` begins in the file, `origin` the file's name, for errors.
    ProtobufReader(std::string_view bytes, std::size_t offset, std::string_view origin)
        : bytes_(bytes), offset_(offset), origin_(origin) {}

    struct Field {
        std::uint32_t number = 0;
        std::uint32_t wire_type = 0;  // 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes
        std::uint64_t value = 0;      // of wire types 0, 1, 5
        std::string_view bytes;       // of wire type 2
        std::size_t offset = 0;       // in the file: of the field, and of its bytes
        std::size_t bytes_offset = 0;
    };

    /// False at the end of the message.
    bool next(Field& field) {
        if (at_ == bytes_.size()) return false;
        field = {};
        field.offset = offset_ + at_;
        const std::uint64_t key = varint();
        field.number = static_cast<std::uint32_t>(key >> 3);
        field.wire_type = static_cast<std::uint32_t>(key & 7);
        if (key >> 32 != 0 || field.number == 0) refuse("field number out of range");
        switch (field.wire_type) {
            case 0:
                field.value = varint();
                break;
            case 1:
                field.value = fixed<std::uint64_t>();
                break;
            case 5:
                field.value = fixed<std::uint32_t>();
                break;
            case 2: {
                const std::uint64_t length = varint();
                if (length > bytes_.size() - at_) {
                    refuse("field " + std::to_string(field.number) + " has " +
                           std::to_string(length) + " bytes, but only " +
                           std::to_string(bytes_.size() - at_) + " are left");
                }
                field.bytes_offset = offset_ + at_;
                field.bytes = bytes_.substr(at_, length);
                at_ += length;
                break;
            }
            default:
                refuse("field " + std::to_string(field.number) + " has the unknown type " +
                       std::to_string(field.wire_type));
        }
        return true;
    }

    // The value of a field that must have this type.
    std::string_view text(const Field& field) const {
        expect(field, 2);
        return field.bytes;
    }
    std::uint64_t number(const Field& field) const {
        expect(field, 0);
        return field.value;
    }
    bool flag(const Field& field) const { return number(field) != 0; }
    float real(const Field& field) const {
        expect(field, 5);
        return std::bit_cast<float>(static_cast<std::uint32_t>(field.value));
    }
    ProtobufReader message(const Field& field) const {
        expect(field, 2);
        return {field.bytes, field.bytes_offset, origin_};
    }

    /// Throws kInput: "<origin>: not a valid SentencePiece model: <cause> (byte N)".
    [[noreturn]] void refuse(const std::string& cause) const { refuse_at(cause, offset_ + at_); }
    [[noreturn]] void refuse(const std::string& cause, const Field& field) const {
        refuse_at(cause, field.offset);
    }

  private:
    [[noreturn]] void refuse_at(const std::string& cause, std::size_t offset) const {
        throw Error(Category::kInput, std::string(origin_) + ": not a valid SentencePiece model: " +
                                          cause + " (byte " + std::to_string(offset) + ")");
    }
    void expect(const Field& field, std::uint32_t wire_type) const {
        if (field.wire_type != wire_type) {
            refuse("field " + std::to_string(field.number) + " has type " +
                       std::to_string(field.wire_type) + ", expected " + std::to_string(wire_type),
                   field);
        }
    }
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 64; shift += 7) {
            if (at_ == bytes_.size()) refuse("a number is cut off");
            const auto byte = static_cast<unsigned char>(bytes_[at_++]);
            if (shift == 63 && byte > 1) refuse("a number has more than 64 bits");
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        refuse("a number has more than 64 bits");
    }
    template <typename T>
    T fixed() {
        if (bytes_.size() - at_ < sizeof(T)) refuse("a number is cut off");
        T value;
        std::memcpy(&value, bytes_.data() + at_, sizeof(T));  // little-endian, as we are
        at_ += sizeof(T);
        return value;
    }

    std::string_view bytes_;
    std::size_t offset_;
    std::string_view origin_;
    std::size_t at_ = 0;
};

}  // namespace longview::llm

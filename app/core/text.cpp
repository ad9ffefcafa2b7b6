#include "app/core/text.h"

#include <algorithm>
#include <cstdint>

#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool continues(unsigned char byte) {
    return (byte & 0xC0U) == 0x80U;
}

/// Length of the well-formed character at the front of `text` (not empty), 0 when there is none.
std::size_t character_length(std::string_view text) {
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char first = at(0);
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4) return 0;
    const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (text.size() < length) return 0;
    for (std::size_t i = 1; i < length; ++i) {
        if (!continues(at(i))) return 0;
    }
    const unsigned char second = at(1);
    if (first == 0xE0 && second < 0xA0) return 0;  // overlong
    if (first == 0xED && second > 0x9F) return 0;  // surrogate
    if (first == 0xF0 && second < 0x90) return 0;  // overlong
    if (first == 0xF4 && second > 0x8F) return 0;  // above U+10FFFF
    return length;
}

}  // namespace

std::optional<std::size_t> find_invalid_utf8(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const std::size_t length = character_length(text.substr(i));
        if (length == 0) return i;
        i += length;
    }
    return std::nullopt;
}

void require_utf8(std::string_view text, std::string_view what) {
    if (const auto offset = find_invalid_utf8(text)) {
        throw Error(Category::kInput, std::string(what) +
                                          " is not UTF-8 text: wrong byte at offset " +
                                          std::to_string(*offset) + ". Convert it to UTF-8 first.");
    }
}

void append_utf8(std::string& text, char32_t code_point) {
    const auto c = static_cast<std::uint32_t>(code_point);
    const auto put = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xC0U | c >> 6U);
        put(0x80U | (c & 0x3FU));
    } else if (c < 0x10000) {
        put(0xE0U | c >> 12U);
        put(0x80U | (c >> 6U & 0x3FU));
        put(0x80U | (c & 0x3FU));
    } else {
        put(0xF0U | c >> 18U);
        put(0x80U | (c >> 12U & 0x3FU));
        put(0x80U | (c >> 6U & 0x3FU));
        put(0x80U | (c & 0x3FU));
    }
}

bool is_blank(std::string_view text) {
    return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos;
}

std::string printable(std::string_view text, bool one_line) {
    std::string shown;
    shown.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
        const std::size_t length = character_length(text.substr(i));
        const auto byte = static_cast<unsigned char>(text[i]);
        const bool space = byte == '\n' || byte == '\t';
        const bool control =
            byte < 0x20 || byte == 0x7F ||
            (byte == 0xC2 && length == 2 && static_cast<unsigned char>(text[i + 1]) < 0xA0);
        if (space) {
            shown += one_line ? ' ' : text[i];
        } else if (length == 0 || control) {
            shown += kReplacement;
        } else {
            shown += text.substr(i, length);
        }
        i += std::max<std::size_t>(length, 1);
    }
    return shown;
}

}  // namespace longview::app

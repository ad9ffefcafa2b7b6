// UTF-8 one character at a time, for every part of the tokenizer that walks over text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace longview::llm {

/// What decode_utf8 found.
struct Utf8Char {
    char32_t code = 0;  // meaningful when valid
    int length = 1;     // bytes to step over; of an invalid sequence its maximal subpart
    bool valid = false;
    bool incomplete = false;  // cut off by the end: more bytes could make it valid
};

/// Reads the character at p < end. Overlong forms, surrogates and codes above U+10FFFF are invalid;
/// `length` then covers what one U+FFFD stands for (Unicode 15, 3.9, "maximal subpart").
inline Utf8Char decode_utf8(const char* p, const char* end) {
    const auto byte = [p](int i) { return static_cast<unsigned char>(p[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return {lead, 1, true, false};
    int need = 0;
    unsigned char low = 0x80, high = 0xBF;  // allowed range of the second byte
    char32_t code = 0;
    if (lead >= 0xC2 && lead <= 0xDF) {
        need = 1;
        code = lead & 0x1FU;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        need = 2;
        code = lead & 0x0FU;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        need = 3;
        code = lead & 0x07U;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    } else {
        return {0, 1, false, false};
    }
    for (int i = 1; i <= need; ++i) {
        if (p + i == end) return {0, i, false, true};
        if (byte(i) < low || byte(i) > high) return {0, i, false, false};
        code = (code << 6) | (byte(i) & 0x3FU);
        low = 0x80;
        high = 0xBF;
    }
    return {code, need + 1, true, false};
}

/// Appends a code point (a Unicode scalar value) as UTF-8.
inline void append_utf8(std::string& out, char32_t code) {
    const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | (code >> 6));
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | (code >> 12));
        put(0x80 | ((code >> 6) & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | (code >> 18));
        put(0x80 | ((code >> 12) & 0x3F));
        put(0x80 | ((code >> 6) & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

/// Bytes of `text` from `begin` on that are valid UTF-8 without a gap.
inline std::size_t valid_utf8_prefix(std::string_view text, std::size_t begin = 0) {
    const char* const start = text.data() + begin;
    const char* const end = text.data() + text.size();
    const char* p = start;
    while (p < end) {
        if (static_cast<unsigned char>(*p) < 0x80) {
            ++p;
            continue;
        }
        const Utf8Char c = decode_utf8(p, end);
        if (!c.valid) break;
        p += c.length;
    }
    return static_cast<std::size_t>(p - start);
}

/// Length of an incomplete character at the very end of `text`, 0 where there is none.
inline std::size_t incomplete_utf8_suffix(std::string_view text) {
    const char* const end = text.data() + text.size();
    for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
        const Utf8Char c = decode_utf8(end - back, end);
        if (c.incomplete && static_cast<std::size_t>(c.length) == back) return back;
        if (c.valid) return 0;
    }
    return 0;
}

}  // namespace longview::llm

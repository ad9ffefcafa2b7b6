#include "app/documents/text_document.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "app/core/files.h"
#include "app/core/text.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

using namespace std::string_view_literals;

constexpr const char* kConvert =
    " Convert it to text first; other formats come in a later version.";

struct Signature {
    std::string_view bytes;
    const char* kind;
};
/// What people are most likely to hand over instead of text.
constexpr std::array kSignatures = {
    Signature{"%PDF-"sv, "a PDF file"},
    Signature{"PK\x03\x04"sv, "an archive (EPUB, DOCX, ODT and ZIP files are)"},
    Signature{"\xD0\xCF\x11\xE0"sv, "an old Office file"},
    Signature{"{\\rtf"sv, "an RTF file"},
};
constexpr std::array kPictures = {"\x89PNG"sv, "\xFF\xD8\xFF"sv, "GIF8"sv, "II*\0"sv, "MM\0*"sv};

void refuse_other_formats(std::string_view bytes, const std::string& origin) {
    for (const Signature& signature : kSignatures) {
        if (bytes.starts_with(signature.bytes)) {
            throw Error(Category::kUnsupported,
                        origin + " is " + signature.kind + ", not text." + kConvert);
        }
    }
    for (const std::string_view picture : kPictures) {
        if (bytes.starts_with(picture)) {
            throw Error(Category::kUnsupported,
                        origin + " is a picture, not text. Attach it as a picture.");
        }
    }
}

[[noreturn]] void refuse_byte(const std::string& origin, std::size_t offset, const char* why) {
    throw Error(Category::kInput, origin + ": " + why + " at byte offset " +
                                      std::to_string(offset) +
                                      ". Save it as UTF-8 text; nothing of it was used.");
}

/// `bytes` starts after the byte order mark, which is 2 bytes long.
std::string from_utf16(std::string_view bytes, bool big_endian, const std::string& origin) {
    const auto unit = [&](std::size_t i) {
        const auto a = static_cast<unsigned char>(bytes[i]);
        const auto b = static_cast<unsigned char>(bytes[i + 1]);
        return static_cast<char32_t>(big_endian ? a << 8 | b : b << 8 | a);
    };
    const auto is_high = [](char32_t c) { return c >= 0xD800 && c <= 0xDBFF; };
    const auto is_low = [](char32_t c) { return c >= 0xDC00 && c <= 0xDFFF; };
    std::string text;
    text.reserve(bytes.size());
    for (std::size_t i = 0; i < bytes.size(); i += 2) {
        if (i + 1 == bytes.size()) refuse_byte(origin, i + 2, "half a UTF-16 character");
        char32_t c = unit(i);
        if (is_high(c) && i + 3 < bytes.size() && is_low(unit(i + 2))) {
            c = 0x10000 + ((c - 0xD800) << 10U) + (unit(i + 2) - 0xDC00);
            i += 2;
        } else if (is_high(c) || is_low(c)) {
            refuse_byte(origin, i + 2, "half a UTF-16 surrogate pair");
        }
        if (c == 0) refuse_byte(origin, i + 2, "a NUL character, so this is not text,");
        append_utf8(text, c);
    }
    return text;
}

std::string to_utf8(std::string_view bytes, const std::string& origin) {
    if (bytes.starts_with("\xFF\xFE\0\0"sv) || bytes.starts_with("\0\0\xFE\xFF"sv)) {
        throw Error(Category::kUnsupported, origin + " is UTF-32 text. Save it as UTF-8.");
    }
    if (bytes.starts_with("\xFF\xFE"sv)) return from_utf16(bytes.substr(2), false, origin);
    if (bytes.starts_with("\xFE\xFF"sv)) return from_utf16(bytes.substr(2), true, origin);
    const std::size_t nul = bytes.find('\0');
    if (nul != std::string_view::npos) {
        refuse_byte(origin, nul, "a NUL byte, so this is a binary file,");
    }
    if (const auto offset = find_invalid_utf8(bytes)) {
        refuse_byte(origin, *offset, "not valid UTF-8");
    }
    if (bytes.starts_with("\xEF\xBB\xBF"sv)) bytes.remove_prefix(3);
    return std::string(bytes);
}

/// CRLF and lone CR become LF.
void unify_line_ends(std::string& text) {
    std::size_t out = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\r') {
            if (i + 1 < text.size() && text[i + 1] == '\n') continue;
            text[out++] = '\n';
        } else {
            text[out++] = text[i];
        }
    }
    text.resize(out);
}

}  // namespace

std::vector<std::string> parse_pages(std::string_view bytes, const std::string& origin) {
    refuse_other_formats(bytes, origin);
    std::string text = to_utf8(bytes, origin);
    if (is_blank(text))
        throw Error(Category::kInput, origin + " is empty: there is no text in it.");
    unify_line_ends(text);
    std::vector<std::string> pages;
    std::size_t begin = 0;
    for (;;) {
        const std::size_t end = text.find('\f', begin);
        if (end == std::string::npos) break;
        pages.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    // A form feed at the very end closes the last page and begins no other.
    if (begin < text.size() || pages.empty()) pages.push_back(text.substr(begin));
    return pages;
}

std::string document_name(std::string_view file_name) {
    std::string name = printable(file_name, true);
    std::replace(name.begin(), name.end(), '"', '\'');
    return name;
}

Document read_text_document(const std::filesystem::path& path) {
    Document document;
    document.name = document_name(path.filename().string());
    document.pages = parse_pages(read_file(path, kMaxDocumentBytes), path.string());
    return document;
}

std::string document_prompt(const Document& document) {
    std::string prompt = "<document name=\"" + document.name + "\">\n";
    const auto end_line = [&] {
        if (prompt.back() != '\n') prompt += '\n';
    };
    for (std::size_t i = 0; i < document.pages.size(); ++i) {
        if (document.pages.size() > 1) {
            end_line();
            prompt += "[page " + std::to_string(i + 1) + "]\n";
        }
        prompt += document.pages[i];
    }
    end_line();
    return prompt + "</document>\n\n";
}

}  // namespace longview::app

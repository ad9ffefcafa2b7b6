// Text and Markdown files as pages, and the words that put a document into a prompt.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace longview::app {

inline constexpr std::uint64_t kMaxDocumentBytes = std::uint64_t{64} << 20U;

struct Document {
    std::string name;                // for the prompt, see document_name
    std::vector<std::string> pages;  // UTF-8, lines end with '\n'; a blank page keeps its number
};

/// Pages of a text: UTF-8 (byte order mark removed) or UTF-16 with a byte order mark; CRLF and CR
/// become LF; a form feed ends a page. Nothing else is changed and nothing is left out.
/// Errors: kInput naming `origin` and the offset of a byte that is not text, or when nothing but
/// white space is there; kUnsupported for PDF, EPUB, Word files, pictures and UTF-32.
std::vector<std::string> parse_pages(std::string_view bytes, const std::string& origin);

/// A file name that cannot break the format: double quotes become single ones, control characters
/// and bytes that are not UTF-8 become U+FFFD.
std::string document_name(std::string_view file_name);

/// Reads a regular file of at most kMaxDocumentBytes.
/// Errors: those of parse_pages; kNotFound, kIo; kInput when it is larger or not a regular file.
Document read_text_document(const std::filesystem::path& path);

/// The document as the model sees it in front of the question:
///     <document name="NAME">
///     [page 1]            (only where there is more than one page)
///     TEXT
///     </document>
///                         (a blank line; the question follows)
std::string document_prompt(const Document& document);

}  // namespace longview::app

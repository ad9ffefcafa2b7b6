// Small questions about UTF-8 text.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace longview::app {

/// Offset of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7: no
/// overlong forms, no surrogates, nothing above U+10FFFF); empty when all of it is.
std::optional<std::size_t> find_invalid_utf8(std::string_view text);

/// Refuses text that is not UTF-8. `what` names it: "the question", "report.txt".
/// Errors: kInput with the offset of the first wrong byte.
void require_utf8(std::string_view text, std::string_view what);

/// Appends one code point (not a surrogate, at most U+10FFFF) as UTF-8.
void append_utf8(std::string& text, char32_t code_point);

/// True where nothing but white space (ASCII) is in it.
bool is_blank(std::string_view text);

/// Removes everything that a terminal would obey instead of show: control characters (C0 except
/// line feed and tab, DEL, C1) become U+FFFD. The text of an answer or a file name may come from
/// a stranger. With `one_line`, line feeds and tabs become spaces too.
std::string printable(std::string_view text, bool one_line = false);

}  // namespace longview::app

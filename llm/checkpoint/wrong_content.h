// Names the usual things that lie where a model file should be. Private to llm/checkpoint.
#pragma once

#include <string>
#include <string_view>

namespace longview::llm {

/// How many bytes from the start of a file name_wrong_content() looks at.
inline constexpr std::size_t kContentSniffBytes = 512;

/// A predicate for "<file> ..." when the file is known not to be what its name says: empty, a
/// Git LFS pointer, a web page, another format. Empty when nothing is recognised.
std::string name_wrong_content(std::string_view start_of_file);

}  // namespace longview::llm

// Messages as JSON: the form of the demo model's evaluation and golden files, which other programs
// use too: [{"role": "user", "content": "text" or [{"type": "text", "text": ...}, {"type":
// "image"}]}]. Pictures lie in files of their own and are taken in order.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "llm/engine/engine.h"

namespace longview::app {

/// Parses JSON of at most 64 levels. Errors: kInput naming `origin` and the byte.
nlohmann::json parse_json(std::string_view text, const std::string& origin);
/// parse_json of a file. Errors also: those of read_file.
nlohmann::json read_json(const std::filesystem::path& path, std::uint64_t max_bytes);

/// "system", "user", "assistant", "function".
const char* role_name(llm::Role role);
/// Errors: kInput naming `origin` and the role.
llm::Role parse_role(const std::string& name, const std::string& origin);

/// A member of an object that must be there and be a string. Errors: kInput naming `origin`.
const std::string& string_member(const nlohmann::json& object, const char* key,
                                 const std::string& origin);

/// Messages word for word, "{document}" replaced by `document` where one is given; the k-th image
/// part is images[k]. Errors: kInput naming `origin`, also when the count of pictures differs.
std::vector<llm::Message> parse_messages(const nlohmann::json& messages,
                                         const std::vector<std::filesystem::path>& images,
                                         const std::string* document, const std::string& origin);

}  // namespace longview::app

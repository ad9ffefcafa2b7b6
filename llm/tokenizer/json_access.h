// Small readers for the fields of tokenizer files. Private to llm/tokenizer.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/strict_json.h"

namespace longview::llm {

[[noreturn]] inline void bad_input(std::string_view where, const std::string& what) {
    throw Error(Category::kInput, std::string(where) + ": " + what);
}
[[noreturn]] inline void unsupported(std::string_view where, const std::string& what) {
    throw Error(Category::kUnsupported, std::string(where) + ": " + what);
}

/// The value at `key`, or null where it is missing.
inline const nlohmann::json& field(const nlohmann::json& object, const char* key) {
    static const nlohmann::json kMissing;
    const auto found = object.find(key);
    return found == object.end() ? kMissing : *found;
}

/// The string at `key`. Errors: kInput when it is missing or something else.
inline const std::string& string_field(const nlohmann::json& object, const char* key,
                                       std::string_view where) {
    const nlohmann::json& value = field(object, key);
    if (!value.is_string()) bad_input(where, std::string("needs the text '") + key + "'");
    return value.get_ref<const std::string&>();
}

/// The switch at `key`, `otherwise` where it is missing or null.
inline bool bool_field(const nlohmann::json& object, const char* key, bool otherwise,
                       std::string_view where) {
    const nlohmann::json& value = field(object, key);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) {
        bad_input(where, std::string("'") + key + "' must be true or false, but is " +
                             describe_json(value));
    }
    return value.get<bool>();
}

}  // namespace longview::llm

// JSON that a stranger wrote: parsed with limits, nothing guessed, nothing silently dropped.
// Used for configuration, index and tokenizer files; safetensors headers use strict_sax.h.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace longview::llm {

/// What a document may cost. Checked while parsing, before memory is spent.
struct JsonLimits {
    std::size_t max_bytes = std::size_t{16} << 20;
    int max_depth = 64;                 // of nested lists and objects
    std::size_t max_items = 1'000'000;  // keys and values together
};

/// Parses one JSON document (RFC 8259, UTF-8). `origin` is the file's name in errors.
/// Beyond nlohmann::json::parse this refuses repeated keys, NUL bytes, numbers that are no finite
/// double, and anything over the limits. Integers above 2^64 arrive as doubles: ask
/// is_number_unsigned() or is_number_integer() where a whole number is needed.
/// Errors: Category::kInput with line, column and cause.
nlohmann::json parse_strict_json(std::string_view text, const JsonLimits& limits,
                                 std::string_view origin);

/// Foreign text as it may stand in a message: quoted, control characters and invalid UTF-8
/// replaced by '?', cut after max_bytes.
std::string quote_for_message(std::string_view text, std::size_t max_bytes = 60);

/// What a JSON value is, for messages: `"abc"`, `12`, `null`, `a list of 3`, `an object`.
std::string describe_json(const nlohmann::json& value);

}  // namespace longview::llm

// Reads the keys of one JSON object so that every error names file, key and value. Private to
// llm/checkpoint.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace longview::llm {

class Fields {
  public:
    /// `file` and `path` ("" or "text_config.") stand in errors. The value must outlive the object.
    /// Errors: kInput when `value` is no object.
    Fields(const nlohmann::json& value, std::string file, std::string path = {});

    /// The value, or null when the key is missing or its value is JSON null.
    const nlohmann::json* find(std::string_view key) const;
    /// Errors, as of all below: kInput naming the key when it is missing.
    const nlohmann::json& require(std::string_view key) const;
    Fields object(std::string_view key) const;
    const nlohmann::json& list(std::string_view key) const;
    std::string text(std::string_view key) const;
    /// A whole number in [low, high].
    int integer(std::string_view key, int low, int high) const;
    /// A finite number in (low, high).
    double number(std::string_view key, double low, double high) const;
    /// number() as a float that is still above `low`.
    float real(std::string_view key, double low, double high) const;

    /// Refuses as kUnsupported any value but the one that the arithmetic covers.
    void only(std::string_view key, const nlohmann::json& supported) const;
    /// The same, but the key may be missing or null.
    void only_if_present(std::string_view key, const nlohmann::json& supported) const;

    /// "<file>: <path><key> <cause>", as kInput or kUnsupported.
    [[noreturn]] void refuse(std::string_view key, const std::string& cause) const;
    [[noreturn]] void unsupported(std::string_view key, const std::string& cause) const;

  private:
    const nlohmann::json* value_;
    std::string file_;
    std::string path_;
};

/// A whole number in [low, high] from `value`; `low` - 1 when it is anything else.
int integer_or_below(const nlohmann::json& value, int low, int high);

}  // namespace longview::llm

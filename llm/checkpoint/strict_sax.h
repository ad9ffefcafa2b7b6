// The part that every strict reading of JSON shares: limits, and errors that name the place.
// Private to llm/checkpoint.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "llm/checkpoint/strict_json.h"

namespace longview::llm {

/// Base of event handlers for nlohmann's parser, which itself keeps no recursion. A handler calls
/// enter(), leave() and count() and throws through refuse().
class StrictSax : public nlohmann::json_sax<nlohmann::json> {
  public:
    StrictSax(std::string_view text, const JsonLimits& limits, std::string_view origin)
        : text_(text), limits_(limits), origin_(origin) {}

    bool parse_error(std::size_t position, const std::string& last_token,
                     const nlohmann::json::exception& error) override;

  protected:
    void enter();
    void leave() { --depth_; }
    void count();
    int depth() const { return depth_; }
    /// Throws Error of Category::kInput: "<origin>: <cause>".
    [[noreturn]] void refuse(const std::string& cause) const;

  private:
    std::string_view text_;
    JsonLimits limits_;
    std::string origin_;
    int depth_ = 0;
    std::size_t items_ = 0;
};

/// Runs the parser over the whole text; size and NUL bytes are checked first.
void run_strict_sax(std::string_view text, const JsonLimits& limits, std::string_view origin,
                    StrictSax& handler);

}  // namespace longview::llm

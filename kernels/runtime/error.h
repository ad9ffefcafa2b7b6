// The one family of exceptions. Every layer throws it; the engine's thread and the applications
// catch it and show category and sentence.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace longview {

enum class Category {
    kInput,        // a file or value from the user is damaged, incomplete or out of range
    kNotFound,     // a file or folder is missing
    kUnsupported,  // well formed, but not something this program can run
    kMemory,       // the plan does not fit, or an allocation failed
    kIo,           // the operating system reported an error
    kDevice,       // the GPU failed
    kCancelled,    // the caller asked to stop
    kBug,          // our own mistake
};

/// "input", "not found", ... for messages and JSON.
const char* category_name(Category category);

/// A sentence a person can act on (what, where, what to do) and the facts behind it.
class Error : public std::runtime_error {
  public:
    using Context = std::vector<std::pair<std::string, std::string>>;

    Error(Category category, const std::string& sentence, Context context = {})
        : std::runtime_error(sentence), category_(category), context_(std::move(context)) {}

    Category category() const noexcept { return category_; }
    /// Facts such as path, tensor, offset, bytes; for reports, not needed to understand what().
    const Context& context() const noexcept { return context_; }

  private:
    Category category_;
    Context context_;
};

[[noreturn]] void check_failed(const char* condition, const char* why, const char* file, int line);

}  // namespace longview

/// Broken precondition of our own: throws Error of Category::kBug. Never for user input.
#define LONGVIEW_CHECK(condition, why)                                                   \
    do {                                                                                 \
        if (!(condition)) ::longview::check_failed(#condition, why, __FILE__, __LINE__); \
    } while (false)

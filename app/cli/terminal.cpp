#include "app/cli/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "app/core/text.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

[[noreturn]] void fail_output() {
    const int error = errno;
    std::clearerr(stdout);
    throw Error(Category::kIo,
                "cannot write to standard output: " + std::generic_category().message(error) + ".");
}

bool can_rewrite_lines() {
    const char* terminal = std::getenv("TERM");
    return stderr_is_terminal() && terminal != nullptr && std::string_view(terminal) != "dumb";
}

std::string duration(double seconds) {
    const auto whole = static_cast<long>(std::ceil(seconds));
    if (whole < 60) return format("%ld s", whole);
    if (whole < 3600) return format("%ld:%02ld min", whole / 60, whole % 60);
    return format("%ld:%02ld h", whole / 3600, whole / 60 % 60);
}

}  // namespace

Output::Output() : is_terminal_(::isatty(STDOUT_FILENO) == 1) {}

Output& Output::standard() {
    static Output output;
    return output;
}

void Output::write(std::string_view text) {
    const std::string shown = is_terminal_ ? printable(text) : std::string();
    if (is_terminal_) text = shown;
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) fail_output();
}

void Output::flush() {
    if (std::fflush(stdout) != 0) fail_output();
}

bool stderr_is_terminal() {
    static const bool terminal = ::isatty(STDERR_FILENO) == 1;
    return terminal;
}

bool stdin_is_terminal() {
    static const bool terminal = ::isatty(STDIN_FILENO) == 1;
    return terminal;
}

void note(const std::string& text) {
    if (stderr_is_terminal()) std::fprintf(stderr, "%s\n", printable(text, true).c_str());
}

void ProgressLine::show(std::string_view what, double fraction, double seconds_left) {
    static const bool useful = can_rewrite_lines();
    if (!useful) return;
    std::string line(what);
    line += format(" %3.0f %%", 100.0 * std::clamp(fraction, 0.0, 1.0));
    if (seconds_left > 0.0) line += ", " + duration(seconds_left) + " left";
    if (line == shown_) return;
    std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    std::fflush(stderr);
    shown_ = std::move(line);
}

void ProgressLine::clear() {
    if (shown_.empty()) return;
    std::fputs("\r\x1b[K", stderr);
    std::fflush(stderr);
    shown_.clear();
}

std::string grouped(std::int64_t number) {
    std::string digits = std::to_string(number);
    const std::size_t first = number < 0 ? 1 : 0;
    for (std::size_t at = digits.size(); at > first + 3;) {
        at -= 3;
        digits.insert(at, ",");
    }
    return digits;
}

std::string format(const char* pattern, ...) {
    std::va_list arguments;
    va_start(arguments, pattern);
    std::va_list again;
    va_copy(again, arguments);
    const int length = std::vsnprintf(nullptr, 0, pattern, arguments);
    std::string text(static_cast<std::size_t>(std::max(length, 0)), '\0');
    std::vsnprintf(text.data(), text.size() + 1, pattern, again);
    va_end(again);
    va_end(arguments);
    return text;
}

}  // namespace longview::app

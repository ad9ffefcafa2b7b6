// Standard output and error as the commands use them: results to stdout, progress and notes to
// stderr and only when that is a terminal. Main thread only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longview::app {

/// Standard output with checked writes. What goes to a terminal is made printable first, since
/// answers may contain control sequences.
class Output {
  public:
    static Output& standard();

    bool is_terminal() const { return is_terminal_; }
    /// Errors: kIo when the disk is full, the pipe closed ...
    void write(std::string_view text);
    void flush();

  private:
    Output();
    bool is_terminal_ = false;
};

bool stderr_is_terminal();
bool stdin_is_terminal();

/// One line on stderr, only on a terminal.
void note(const std::string& text);

/// A line on stderr that rewrites itself; nothing where stderr is no terminal.
class ProgressLine {
  public:
    ProgressLine() = default;
    ProgressLine(const ProgressLine&) = delete;
    ProgressLine& operator=(const ProgressLine&) = delete;
    ~ProgressLine() { clear(); }

    /// fraction 0 ... 1; seconds_left < 0: not known.
    void show(std::string_view what, double fraction, double seconds_left = -1.0);
    void clear();

  private:
    std::string shown_;
};

/// "1,234,567"
std::string grouped(std::int64_t number);
/// printf for a short std::string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace longview::app

// Lines that a person types, or that come from a pipe.
#pragma once

#include <memory>
#include <string>

namespace longview::app {

/// Where standard input and error are a terminal, lines can be edited and recalled (libedit);
/// otherwise they are read as they are, and no prompt is shown.
class LineReader {
  public:
    enum class Result { kLine, kEnd, kInterrupted };

    LineReader();
    ~LineReader();
    LineReader(const LineReader&) = delete;
    LineReader& operator=(const LineReader&) = delete;

    /// The next line without its end. kInterrupted: Ctrl-C was pressed (an InterruptGuard must be
    /// alive). Errors: kIo; kInput when a line is longer than 64 MiB.
    Result read(const std::string& prompt, std::string& line);

  private:
    struct Editor;
    Result read_edited(const std::string& prompt, std::string& line);
    Result read_plain(std::string& line);

    std::unique_ptr<Editor> editor_;
    std::string ahead_;  // read but not yet given out
};

}  // namespace longview::app

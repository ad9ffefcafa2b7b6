#include "app/cli/line_reader.h"

#include <histedit.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <string_view>
#include <system_error>

#include "app/cli/request.h"
#include "app/cli/terminal.h"
#include "app/core/files.h"
#include "app/documents/text_document.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

constexpr int kHistoryLines = 500;

}  // namespace

struct LineReader::Editor {
    ::EditLine* line = nullptr;
    ::History* history = nullptr;
    ::HistEvent event{};
    std::string prompt;

    Editor() : line(::el_init("longview-cli", stdin, stderr, stderr)), history(::history_init()) {
        if (line == nullptr || history == nullptr) return;
        ::history(history, &event, H_SETSIZE, kHistoryLines);
        ::history(history, &event, H_SETUNIQUE, 1);
        ::el_set(line, EL_CLIENTDATA, this);
        ::el_set(line, EL_PROMPT, &Editor::show_prompt);
        ::el_set(line, EL_EDITOR, "emacs");
        ::el_set(line, EL_HIST, ::history, history);
        // libedit restores the terminal when a signal comes and then calls our own handler.
        ::el_set(line, EL_SIGNAL, 1);
    }
    Editor(const Editor&) = delete;
    Editor& operator=(const Editor&) = delete;
    ~Editor() {
        if (line != nullptr) ::el_end(line);
        if (history != nullptr) ::history_end(history);
    }
    bool usable() const { return line != nullptr && history != nullptr; }

    static char* show_prompt(::EditLine* line) {
        Editor* editor = nullptr;
        ::el_get(line, EL_CLIENTDATA, &editor);
        return editor->prompt.data();
    }
};

LineReader::LineReader() {
    if (!stdin_is_terminal() || !stderr_is_terminal()) return;
    editor_ = std::make_unique<Editor>();
    if (!editor_->usable()) editor_.reset();
}

LineReader::~LineReader() = default;

LineReader::Result LineReader::read(const std::string& prompt, std::string& line) {
    line.clear();
    return editor_ ? read_edited(prompt, line) : read_plain(line);
}

LineReader::Result LineReader::read_edited(const std::string& prompt, std::string& line) {
    editor_->prompt = prompt;
    int length = 0;
    const char* text = ::el_gets(editor_->line, &length);
    if (InterruptGuard::taken()) {
        ::el_reset(editor_->line);
        return Result::kInterrupted;
    }
    if (text == nullptr || length <= 0) return Result::kEnd;
    line.assign(text, static_cast<std::size_t>(length));
    if (line.ends_with('\n')) line.pop_back();
    if (!line.empty()) ::history(editor_->history, &editor_->event, H_ENTER, line.c_str());
    return Result::kLine;
}

LineReader::Result LineReader::read_plain(std::string& line) {
    std::array<char, 65536> block{};
    std::size_t searched = 0;
    for (;;) {
        const std::size_t end = ahead_.find('\n', searched);
        if (end != std::string::npos) {
            line = ahead_.substr(0, end);
            ahead_.erase(0, end + 1);
            if (line.ends_with('\r')) line.pop_back();
            return Result::kLine;
        }
        searched = ahead_.size();
        if (searched > kMaxDocumentBytes) {
            throw Error(Category::kInput, "a line of standard input is longer than the limit of " +
                                              human_bytes(kMaxDocumentBytes) + ".");
        }
        const ssize_t got = ::read(STDIN_FILENO, block.data(), block.size());
        if (got < 0 && errno == EINTR) {
            if (InterruptGuard::taken()) return Result::kInterrupted;
            continue;
        }
        if (got < 0) {
            throw Error(Category::kIo, "cannot read standard input: " +
                                           std::generic_category().message(errno) + ".");
        }
        if (got == 0) {
            line.swap(ahead_);
            ahead_.clear();
            return line.empty() ? Result::kEnd : Result::kLine;
        }
        ahead_.append(block.data(), static_cast<std::size_t>(got));
    }
}

}  // namespace longview::app

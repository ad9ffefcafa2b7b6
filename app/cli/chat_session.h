// The conversation behind `longview-cli chat`: questions, attachments, commands. Reads no input.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/cli/options.h"
#include "app/cli/question.h"
#include "llm/engine/engine.h"

namespace longview::app {

class ChatSession {
  public:
    ChatSession(llm::Engine& engine, AnswerOptions options, const std::string& system);

    /// Does what a line says: a command that starts with '/', or else a question, whose answer is
    /// streamed to standard output. Returns false for /quit.
    /// Errors: of files, input and the engine; the conversation is then as it was before.
    bool handle(const std::string& line);

    /// What the next question takes along.
    Attachments& pending() { return pending_; }

  private:
    struct Command;
    static const std::vector<Command>& commands();

    void ask(const std::string& question);
    void start_new();
    void undo();
    void save(const std::filesystem::path& file);
    void load(const std::filesystem::path& file);
    void print_statistics() const;
    static void print_help();

    llm::Engine& engine_;
    AnswerOptions options_;
    std::vector<llm::Message> system_;    // none or one
    std::vector<llm::Message> messages_;  // after it
    Attachments pending_;
    std::optional<llm::Statistics> last_;
    /// The engine's memory of the last request is that of messages_, nothing more: only then may it
    /// be saved, since it would give away what was undone.
    bool state_is_ours_ = false;
    /// The file whose state was loaded and still fits messages_.
    std::filesystem::path state_file_;
};

}  // namespace longview::app

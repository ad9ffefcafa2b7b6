#include "app/cli/chat_session.h"

#include <algorithm>
#include <functional>
#include <system_error>
#include <utility>

#include "app/cli/command.h"
#include "app/cli/request.h"
#include "app/cli/terminal.h"
#include "app/core/conversation_file.h"
#include "app/core/text.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace fs = std::filesystem;

namespace {

std::string trimmed(std::string_view text) {
    const std::size_t begin = text.find_first_not_of(" \t");
    if (begin == std::string_view::npos) return {};
    return std::string(text.substr(begin, text.find_last_not_of(" \t") - begin + 1));
}

/// A file name as typed or dropped onto the terminal, which puts quotes around it.
std::string file_argument(std::string text) {
    const bool quoted = text.size() >= 2 && text.front() == text.back() &&
                        (text.front() == '\'' || text.front() == '"');
    return quoted ? text.substr(1, text.size() - 2) : text;
}

void remove_stale_state(const fs::path& path) {
    std::error_code failed;
    fs::remove(path, failed);
}

}  // namespace

struct ChatSession::Command {
    const char* name;
    const char* argument;  // shown in the help; empty: takes none
    const char* help;
    std::function<void(ChatSession&, const std::string&)> action;  // empty: /quit
};

const std::vector<ChatSession::Command>& ChatSession::commands() {
    using Self = ChatSession;
    static const std::vector<Command> list = {
        {"/image", "FILE", "attach a picture to the next question",
         [](Self& self, const std::string& file) {
             attach_picture(self.pending_, file);
             note("Attached " + file);
         }},
        {"/doc", "FILE", "attach a text or Markdown document to the next question",
         [](Self& self, const std::string& file) {
             attach_document(self.pending_, file);
             note("Attached " + file);
         }},
        {"/undo", "", "take back the last question and its answer",
         [](Self& self, const std::string&) { self.undo(); }},
        {"/new", "", "start a new conversation",
         [](Self& self, const std::string&) { self.start_new(); }},
        {"/save", "FILE", "save the conversation, and what was read of it beside it (FILE.state)",
         [](Self& self, const std::string& file) { self.save(file); }},
        {"/load", "FILE", "go on with a saved conversation",
         [](Self& self, const std::string& file) { self.load(file); }},
        {"/stats", "", "tokens and times of the last answer",
         [](Self& self, const std::string&) { self.print_statistics(); }},
        {"/help", "", "this list", [](Self&, const std::string&) { print_help(); }},
        {"/quit", "", "leave (also Ctrl-D)", nullptr},
    };
    return list;
}

ChatSession::ChatSession(llm::Engine& engine, AnswerOptions options, const std::string& system)
    : engine_(engine), options_(std::move(options)) {
    if (!system.empty()) {
        system_.push_back({llm::Role::kSystem, {llm::text_part(system)}, ""});
    }
}

bool ChatSession::handle(const std::string& line) {
    require_utf8(line, "the line");
    if (is_blank(line)) return true;
    if (line.front() != '/') {
        ask(line);
        return true;
    }
    const std::size_t space = std::min(line.find_first_of(" \t"), line.size());
    const std::string name = line.substr(0, space);
    const std::string argument = file_argument(trimmed(std::string_view(line).substr(space)));
    for (const Command& command : commands()) {
        if (name != command.name) continue;
        if ((*command.argument == '\0') != argument.empty()) {
            throw UsageError("write it as: " + trimmed(name + " " + command.argument));
        }
        if (!command.action) return false;
        command.action(*this, argument);
        return true;
    }
    throw UsageError("there is no command " + name +
                     "; /help lists them. Put a space before a question that starts with /");
}

void ChatSession::ask(const std::string& question) {
    llm::Request request;
    request.messages = system_;
    request.messages.insert(request.messages.end(), messages_.begin(), messages_.end());
    llm::Message asked = user_message(pending_, question);
    request.messages.push_back(asked);
    request.sampling = options_.sampling;
    request.max_tokens = options_.max_tokens;
    request.stop = options_.stop;

    Output& output = Output::standard();
    state_is_ours_ = false;  // from here on the engine remembers more than messages_
    const llm::Engine::Answer answer =
        run_request(engine_, std::move(request), [&](std::string_view text) {
            output.write(text);
            output.flush();
        });
    if (!answer.text.empty() || answer.reason != llm::FinishReason::kCancelled) {
        output.write("\n");
        output.flush();
    }
    last_ = answer.statistics;
    if (answer.reason == llm::FinishReason::kCancelled) {
        note(answer.text.empty() ? "Stopped; the question was not kept." : "Stopped.");
        if (answer.text.empty()) return;
    }
    if (answer.reason == llm::FinishReason::kLength) {
        note("The answer was cut off after " + std::to_string(options_.max_tokens) +
             " tokens (--max-tokens).");
    }
    messages_.push_back(std::move(asked));
    messages_.push_back({llm::Role::kAssistant, {llm::text_part(answer.text)}, ""});
    pending_ = {};
    state_is_ours_ = true;
    state_file_.clear();
}

void ChatSession::start_new() {
    messages_.clear();
    pending_ = {};
    last_.reset();
    state_is_ours_ = false;
    state_file_.clear();
}

void ChatSession::undo() {
    const auto question = std::find_if(messages_.rbegin(), messages_.rend(),
                                       [](const auto& m) { return m.role == llm::Role::kUser; });
    if (question == messages_.rend()) throw UsageError("there is no question to take back");
    messages_.erase(std::prev(question.base()), messages_.end());
    last_.reset();
    state_is_ours_ = false;
    state_file_.clear();
    note("Took back the last question and its answer.");
}

void ChatSession::save(const fs::path& file) {
    const llm::ModelInfo& info = engine_.info();
    Conversation conversation{info.name, info.fingerprint, system_};
    conversation.messages.insert(conversation.messages.end(), messages_.begin(), messages_.end());
    if (conversation.messages.empty()) throw UsageError("there is nothing to save yet");
    save_conversation(conversation, file);
    const fs::path state = state_path(file);
    if (state_is_ours_) {
        engine_.save_state(state);
        state_file_ = state;
    } else if (state_file_ != state) {
        // What lies there belongs to something else that this file no longer holds.
        remove_stale_state(state);
    }
    note("Saved " + std::to_string(messages_.size()) + " messages to " + file.string());
}

void ChatSession::load(const fs::path& file) {
    Conversation conversation = load_conversation(file);
    start_new();
    system_.clear();
    for (llm::Message& message : conversation.messages) {
        const bool leads = message.role == llm::Role::kSystem && messages_.empty();
        (leads ? system_ : messages_).push_back(std::move(message));
    }
    note("Loaded " + std::to_string(messages_.size()) + " messages of " + file.string());
    if (conversation.fingerprint != engine_.info().fingerprint) {
        note("They were written with another model (" + conversation.model +
             "); this one reads them from the beginning.");
        return;
    }
    const fs::path state = state_path(file);
    std::error_code failed;
    if (!fs::exists(state, failed)) {
        note("What was read of it is not saved beside it; the next question reads it again.");
        return;
    }
    try {
        const std::int64_t tokens = engine_.load_state(state);
        state_file_ = state;
        note("The model remembers " + grouped(tokens) + " tokens of it.");
    } catch (const Error& error) {
        note(std::string(error.what()) + " The next question reads the conversation again.");
    }
}

void ChatSession::print_statistics() const {
    if (!last_) throw UsageError("there is no answer yet");
    const double seconds = last_->decode_seconds;
    const double speed =
        seconds > 0.0 ? static_cast<double>(last_->completion_tokens) / seconds : 0.0;
    Output& output = Output::standard();
    output.write("prompt " + grouped(last_->prompt_tokens) + " tokens, " +
                 grouped(last_->reused_tokens) + " of them reused, " +
                 grouped(last_->image_tokens) + " of pictures; read in " +
                 format("%.2f s\n", last_->prefill_seconds));
    output.write("answer " + grouped(last_->completion_tokens) + " tokens in " +
                 format("%.2f s, %.1f tokens/s\n", seconds, speed));
    output.flush();
}

void ChatSession::print_help() {
    Output& output = Output::standard();
    for (const Command& command : commands()) {
        output.write(format("%-6s %-5s %s\n", command.name, command.argument, command.help));
    }
    output.write("A line that ends with \\ goes on in the next one.\n");
    output.flush();
}

}  // namespace longview::app

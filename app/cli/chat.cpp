// longview-cli chat: a conversation, line by line.
#include <cstdio>

#include "app/cli/chat_session.h"
#include "app/cli/command.h"
#include "app/cli/line_reader.h"
#include "app/cli/options.h"
#include "app/cli/request.h"
#include "app/cli/terminal.h"
#include "app/core/text.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

struct ChatOptions {
    ModelOptions model;
    AnswerOptions answer;
    std::vector<std::string> images;
    std::vector<std::string> documents;
    std::string system;
};

/// A line, joined with the next as long as it ends with a backslash.
LineReader::Result read_joined(LineReader& reader, std::string& text) {
    auto result = reader.read("> ", text);
    while (result == LineReader::Result::kLine && text.ends_with('\\')) {
        std::string more;
        result = reader.read(". ", more);
        if (result == LineReader::Result::kLine) {
            text.back() = '\n';
            text += more;
        }
    }
    return result;
}

/// What went wrong with one line ends that line, not the chat.
bool try_line(ChatSession& session, const std::string& line, bool& go_on) {
    std::string problem;
    try {
        go_on = session.handle(line);
        return true;
    } catch (const UsageError& error) {
        problem = error.what();
    } catch (const Error& error) {
        problem = error.what();
    }
    // When the answers can no longer be shown there is nothing to go on for.
    Output::standard().flush();
    std::fprintf(stderr, "error: %s\n", printable(problem, true).c_str());
    return false;
}

int run_chat(const ChatOptions& options) {
    require_utf8(options.system, "the system text");
    Attachments attachments;
    for (const std::string& path : options.images) attach_picture(attachments, path);
    for (const std::string& path : options.documents) attach_document(attachments, path);
    const auto engine = load_engine(options.model);
    note(engine->info().name + " on " + engine->info().device_name +
         ". /help lists the commands, /quit leaves.");

    ChatSession session(*engine, options.answer, options.system);
    session.pending() = std::move(attachments);
    const InterruptGuard interrupt(InterruptGuard::Mode::kEvery);
    LineReader reader;
    int status = kExitDone;
    for (bool go_on = true; go_on;) {
        std::string line;
        const LineReader::Result result = read_joined(reader, line);
        if (result == LineReader::Result::kEnd) break;
        if (result == LineReader::Result::kLine && !try_line(session, line, go_on)) {
            status = kExitFailed;
        }
        if (!InterruptGuard::taken()) continue;
        InterruptGuard::clear();
        // A script is stopped as a whole; a person stops the answer.
        if (!stdin_is_terminal()) return kExitInterrupted;
        if (result != LineReader::Result::kInterrupted) continue;
        std::fputc('\n', stderr);  // the cursor still stands behind the prompt
        note("/quit leaves the chat.");
    }
    // A person has seen each error; a script learns of them here.
    return stdin_is_terminal() ? kExitDone : status;
}

}  // namespace

void add_chat(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand(
        "chat", "Talk about pictures and documents; /help there lists its commands");
    const auto options = std::make_shared<ChatOptions>();
    add_model_options(*command, options->model);
    command->add_option("--image", options->images, "Picture for the first question")
        ->type_name("FILE")
        ->allow_extra_args(false);
    command->add_option("--doc", options->documents, "Document for the first question")
        ->type_name("FILE")
        ->allow_extra_args(false);
    command->add_option("--system", options->system, "Instructions that come before everything")
        ->type_name("TEXT");
    add_answer_options(*command, options->answer);
    command->callback([options, &action] { action = [options] { return run_chat(*options); }; });
}

}  // namespace longview::app

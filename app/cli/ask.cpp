// longview-cli ask: one question about pictures and documents.
#include <nlohmann/json.hpp>

#include "app/cli/command.h"
#include "app/cli/options.h"
#include "app/cli/question.h"
#include "app/cli/request.h"
#include "app/cli/terminal.h"
#include "app/core/text.h"

namespace longview::app {

namespace {

struct AskOptions {
    ModelOptions model;
    AnswerOptions answer;
    std::vector<std::string> images;
    std::vector<std::string> documents;
    std::string system;
    std::string question;
    bool json = false;
};

std::string as_json(const llm::Engine::Answer& answer, const llm::ModelInfo& model) {
    const llm::Statistics& statistics = answer.statistics;
    const nlohmann::ordered_json object = {
        {"answer", answer.text},
        {"finish_reason", llm::finish_reason_name(answer.reason)},
        {"prompt_tokens", statistics.prompt_tokens},
        {"reused_tokens", statistics.reused_tokens},
        {"completion_tokens", statistics.completion_tokens},
        {"image_tokens", statistics.image_tokens},
        {"prefill_seconds", statistics.prefill_seconds},
        {"decode_seconds", statistics.decode_seconds},
        {"model", model.name},
        {"device", model.device},
    };
    return object.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

int run_ask(const AskOptions& options) {
    // Everything that can be wrong with the user's own files is said before the model is loaded.
    const std::string question = read_question(options.question);
    require_utf8(options.system, "the system text");
    Attachments attachments;
    for (const std::string& path : options.images) attach_picture(attachments, path);
    for (const std::string& path : options.documents) attach_document(attachments, path);

    llm::Request request;
    if (!options.system.empty()) {
        request.messages.push_back({llm::Role::kSystem, {llm::text_part(options.system)}, ""});
    }
    request.messages.push_back(user_message(std::move(attachments), question));
    request.sampling = options.answer.sampling;
    request.max_tokens = options.answer.max_tokens;
    request.stop = options.answer.stop;

    const auto engine = load_engine(options.model);
    Output& output = Output::standard();
    const InterruptGuard interrupt(InterruptGuard::Mode::kOnce);
    const llm::Engine::Answer answer =
        run_request(*engine, std::move(request), [&](std::string_view text) {
            if (options.json) return;
            output.write(text);
            output.flush();
        });
    if (options.json) {
        output.write(as_json(answer, engine->info()));
    } else if (!answer.text.ends_with('\n')) {
        output.write("\n");
    }
    output.flush();
    if (answer.reason == llm::FinishReason::kLength) {
        note("The answer was cut off after " + std::to_string(options.answer.max_tokens) +
             " tokens (--max-tokens).");
    }
    return answer.reason == llm::FinishReason::kCancelled ? kExitInterrupted : kExitDone;
}

}  // namespace

void add_ask(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand("ask", "Ask one question about pictures and documents");
    const auto options = std::make_shared<AskOptions>();
    add_model_options(*command, options->model);
    command->add_option("--image", options->images, "Picture (may be given several times)")
        ->type_name("FILE")
        ->allow_extra_args(false);
    command
        ->add_option("--doc", options->documents,
                     "Text or Markdown document (may be given several times)")
        ->type_name("FILE")
        ->allow_extra_args(false);
    command->add_option("--system", options->system, "Instructions that come before everything")
        ->type_name("TEXT");
    add_answer_options(*command, options->answer);
    add_json_option(*command, options->json);
    command->add_option("QUESTION", options->question, "The question; - reads standard input")
        ->type_name("")
        ->required();
    command->callback([options, &action] { action = [options] { return run_ask(*options); }; });
}

}  // namespace longview::app

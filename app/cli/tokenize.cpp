// longview-cli tokenize: how a text becomes token ids.
#include <nlohmann/json.hpp>

#include "app/cli/command.h"
#include "app/cli/options.h"
#include "app/cli/question.h"
#include "app/cli/terminal.h"
#include "llm/tokenizer/tokenizer.h"

namespace longview::app {

namespace {

struct TokenizeOptions {
    std::string model;
    std::string text;
    bool json = false;
};

int run_tokenize(const TokenizeOptions& options) {
    const auto tokenizer = llm::load_tokenizer(model_folder(options.model));
    const std::string text = options.text == "-" ? read_standard_input() : options.text;
    const std::vector<llm::TokenId> ids = tokenizer->encode(text);
    Output& output = Output::standard();
    if (options.json) {
        auto pieces = nlohmann::ordered_json::array();
        for (const llm::TokenId id : ids) pieces.push_back(std::string(tokenizer->piece(id)));
        const nlohmann::ordered_json object = {
            {"tokens", ids.size()}, {"ids", ids}, {"pieces", std::move(pieces)}};
        output.write(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
                     "\n");
        return kExitDone;
    }
    for (const llm::TokenId id : ids) {
        output.write(format("%7d  ", id));
        output.write(tokenizer->piece(id));
        output.write("\n");
    }
    note(grouped(static_cast<std::int64_t>(ids.size())) + " tokens");
    return kExitDone;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand("tokenize", "Show the token ids and pieces of a text");
    const auto options = std::make_shared<TokenizeOptions>();
    add_model_option(*command, options->model);
    add_json_option(*command, options->json);
    command->add_option("TEXT", options->text, "The text; - reads standard input")
        ->type_name("")
        ->required();
    command->callback(
        [options, &action] { action = [options] { return run_tokenize(*options); }; });
}

}  // namespace longview::app

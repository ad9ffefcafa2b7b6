#include "app/cli/options.h"

#include <limits>

#include "app/cli/terminal.h"
#include "app/core/resources.h"
#include "app/core/text.h"

namespace longview::app {

void add_model_option(CLI::App& command, std::string& model) {
    command
        .add_option("--model", model, "Model folder (default: LONGVIEW_MODEL or the demo model)")
        ->type_name("DIR");
}

void add_model_options(CLI::App& command, ModelOptions& options) {
    add_model_option(command, options.model);
    command.add_option("--device", options.device, "Where to compute")
        ->option_text("{auto,cpu,cuda}=auto")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
    command.add_option("--threads", options.threads, "CPU threads (0: all there are)")
        ->type_name("N")
        ->check(in_range(0, 4096))
        ->capture_default_str();
}

std::filesystem::path model_folder(const std::string& model) {
    return model.empty() ? default_model_folder() : std::filesystem::path(model);
}

std::unique_ptr<llm::Engine> load_engine(const ModelOptions& options) {
    llm::EngineOptions engine;
    engine.model = model_folder(options.model);
    engine.threads = options.threads;
    engine.device = options.device == "cpu"    ? llm::DeviceChoice::kCpu
                    : options.device == "cuda" ? llm::DeviceChoice::kCuda
                                               : llm::DeviceChoice::kAuto;
    ProgressLine progress;
    auto loaded = llm::Engine::load(
        engine, [&](double fraction) { progress.show("Loading the model", fraction); });
    progress.clear();
    const llm::ModelInfo& info = loaded->info();
    if (!info.device_note.empty()) note(info.device_note);
    return loaded;
}

void add_answer_options(CLI::App& command, AnswerOptions& options) {
    llm::SamplingOptions& sampling = options.sampling;
    command.add_option("--max-tokens", options.max_tokens, "End the answer after so many tokens")
        ->type_name("N")
        ->check(in_range(1, 1e9))
        ->capture_default_str();
    command
        .add_option("--temperature", sampling.temperature,
                    "0: always the likeliest token; higher: more varied")
        ->type_name("T")
        ->check(in_range(0, 10))
        ->capture_default_str();
    command.add_option("--seed", sampling.seed, "Repeats a varied answer")
        ->type_name("N")
        ->check(in_range(0, 0x1p64))
        ->capture_default_str();
    command.add_option("--top-k", sampling.top_k, "Choose among the K likeliest tokens (0: all)")
        ->type_name("K")
        ->check(in_range(0, std::numeric_limits<int>::max()))
        ->capture_default_str();
    command
        .add_option("--top-p", sampling.top_p,
                    "Choose among the likeliest tokens that together reach P")
        ->type_name("P")
        ->check(in_range(0, 1))
        ->capture_default_str();
    command
        .add_option("--min-p", sampling.min_p,
                    "Leave out tokens less likely than P times the likeliest")
        ->type_name("P")
        ->check(in_range(0, 1))
        ->capture_default_str();
    command.add_option("--repetition-penalty", sampling.repetition_penalty, "1: none")
        ->type_name("X")
        ->check(in_range(0.01, 100))
        ->capture_default_str();
    command.add_option("--presence-penalty", sampling.presence_penalty, "0: none")
        ->type_name("X")
        ->check(in_range(-100, 100))
        ->capture_default_str();
    command.add_option("--frequency-penalty", sampling.frequency_penalty, "0: none")
        ->type_name("X")
        ->check(in_range(-100, 100))
        ->capture_default_str();
    command
        .add_option("--stop", options.stop,
                    "Text that ends the answer (may be given several times)")
        ->type_name("TEXT")
        ->allow_extra_args(false)
        ->check(CLI::Validator(
            [](std::string& text) {
                if (text.empty()) return std::string("the text is empty");
                return find_invalid_utf8(text) ? std::string("the text is not UTF-8")
                                               : std::string();
            },
            ""));
}

void add_json_option(CLI::App& command, bool& json) {
    command.add_flag("--json", json, "One JSON object on standard output");
}

CLI::Validator in_range(double low, double high) {
    return CLI::Validator(
        [low, high](std::string& text) {
            double value = 0.0;
            if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) {
                return std::string();
            }
            return "\"" + text + "\" is not a number from " + format("%g to %g", low, high);
        },
        "");
}

}  // namespace longview::app

// longview-cli bench: tokens a second by length, for the model and machine at hand.
#include <nlohmann/json.hpp>

#include "app/cli/command.h"
#include "app/cli/options.h"
#include "app/cli/terminal.h"

namespace longview::app {

using nlohmann::ordered_json;

namespace {

struct BenchOptions {
    ModelOptions model;
    std::vector<std::int64_t> lengths = {128, 512, 2048};
    std::int64_t decode = 32;
    bool json = false;
};

/// Long enough to touch every kernel and to fill caches, short enough not to be noticed.
constexpr std::int64_t kWarmUpPrompt = 64;
constexpr std::int64_t kWarmUpDecode = 2;

double rate(std::int64_t tokens, double seconds) {
    return seconds > 0.0 ? static_cast<double>(tokens) / seconds : 0.0;
}

ordered_json speed_json(const llm::Engine::Speed& speed) {
    return {{"prompt_tokens", speed.prompt_tokens},
            {"prefill_seconds", speed.prefill_seconds},
            {"prefill_tokens_per_second", rate(speed.prompt_tokens, speed.prefill_seconds)},
            {"decode_tokens", speed.decode_tokens},
            {"decode_seconds", speed.decode_seconds},
            {"decode_tokens_per_second", rate(speed.decode_tokens, speed.decode_seconds)}};
}

std::string table_row(const llm::Engine::Speed& speed) {
    return format("%10s %12.3f %14.1f %8s %12.3f %14.1f\n", grouped(speed.prompt_tokens).c_str(),
                  speed.prefill_seconds, rate(speed.prompt_tokens, speed.prefill_seconds),
                  grouped(speed.decode_tokens).c_str(), speed.decode_seconds,
                  rate(speed.decode_tokens, speed.decode_seconds));
}

int run_bench(const BenchOptions& options) {
    const auto engine = load_engine(options.model);
    const llm::ModelInfo& info = engine->info();
    Output& output = Output::standard();
    engine->measure(kWarmUpPrompt, kWarmUpDecode);
    if (!options.json) {
        output.write("model  " + info.name + "\ndevice " + info.device_name + "\n\n");
        output.write(format("%10s %12s %14s %8s %12s %14s\n", "prompt", "prefill s", "tokens/s",
                            "decode", "decode s", "tokens/s"));
        output.flush();
    }
    auto rows = ordered_json::array();
    for (const std::int64_t length : options.lengths) {
        const llm::Engine::Speed speed = engine->measure(length, options.decode);
        rows.push_back(speed_json(speed));
        if (options.json) continue;
        output.write(table_row(speed));
        output.flush();
    }
    if (options.json) {
        const ordered_json object = {{"model", info.name},
                                     {"device", info.device},
                                     {"device_name", info.device_name},
                                     {"lengths", std::move(rows)}};
        output.write(object.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
    }
    return kExitDone;
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
    CLI::App* command =
        app.add_subcommand("bench", "Measure reading and writing speed in tokens a second");
    const auto options = std::make_shared<BenchOptions>();
    add_model_options(*command, options->model);
    command->add_option("--lengths", options->lengths, "Prompt lengths in tokens")
        ->type_name("N,N,...")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->check(in_range(1, 1e8))
        ->capture_default_str();
    command->add_option("--decode", options->decode, "Tokens to write after each prompt")
        ->type_name("N")
        ->check(in_range(1, 1e6))
        ->capture_default_str();
    add_json_option(*command, options->json);
    command->callback([options, &action] { action = [options] { return run_bench(*options); }; });
}

}  // namespace longview::app

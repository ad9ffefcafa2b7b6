// Options that several commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "llm/engine/engine.h"

namespace longview::app {

/// --model, --device, --threads
struct ModelOptions {
    std::string model;
    std::string device = "auto";
    int threads = 0;
};
void add_model_option(CLI::App& command, std::string& model);
void add_model_options(CLI::App& command, ModelOptions& options);

/// The folder of --model, or the default model.
std::filesystem::path model_folder(const std::string& model);

/// Loads the model with a progress line. Errors: those of Engine::load.
std::unique_ptr<llm::Engine> load_engine(const ModelOptions& options);

/// --max-tokens, --temperature, --seed and their like.
struct AnswerOptions {
    std::int64_t max_tokens = 1024;
    llm::SamplingOptions sampling;
    std::vector<std::string> stop;
};
void add_answer_options(CLI::App& command, AnswerOptions& options);

/// --json
void add_json_option(CLI::App& command, bool& json);

/// Accepts numbers from `low` to `high`; unlike CLI::Range it refuses NaN.
CLI::Validator in_range(double low, double high);

}  // namespace longview::app

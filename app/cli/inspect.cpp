// longview-cli inspect: what a checkpoint folder is, from its headers alone.
#include <nlohmann/json.hpp>
#include <optional>

#include "app/cli/command.h"
#include "app/cli/options.h"
#include "app/cli/terminal.h"
#include "app/core/files.h"
#include "kernels/runtime/error.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/tokenizer/chat_format.h"
#include "llm/tokenizer/tokenizer.h"

namespace longview::app {

using nlohmann::ordered_json;

namespace {

struct InspectOptions {
    std::string folder;
    bool json = false;
};

/// What could be found out; a damaged folder gives less and a problem for each missing piece.
struct Findings {
    std::string folder;
    std::optional<llm::ModelConfig> config;
    std::optional<llm::CheckpointSummary> summary;
    std::string fingerprint;
    std::optional<std::int64_t> tokenizer_size;
    std::vector<std::string> notes;     // odd but harmless
    std::vector<std::string> problems;  // what keeps the model from being used
};

template <typename Step>
void attempt(Findings& findings, Step step) {
    try {
        step();
    } catch (const Error& error) {
        findings.problems.emplace_back(error.what());
    }
}

Findings look_at(const std::string& folder) {
    Findings findings;
    findings.folder = folder;
    attempt(findings, [&] { findings.config = llm::load_config(folder); });
    // Without a configuration nothing can be said about the tensors.
    if (findings.config) {
        attempt(findings, [&] {
            const auto checkpoint = llm::Checkpoint::open(folder);
            findings.summary = checkpoint->summary();
            findings.notes = findings.summary->problems;
            findings.fingerprint = checkpoint->fingerprint();
        });
    }
    attempt(findings, [&] {
        const auto tokenizer = llm::load_tokenizer(folder);
        findings.tokenizer_size = tokenizer->size();
        if (!findings.config) return;
        if (tokenizer->size() > findings.config->text.vocab_size) {
            findings.problems.push_back(
                "the tokenizer has ids up to " + std::to_string(tokenizer->size() - 1) +
                ", but vocab_size is " + std::to_string(findings.config->text.vocab_size) + ".");
        }
        const llm::ChatFormat format(*tokenizer, findings.config->image_token_index);
    });
    return findings;
}

ordered_json parts_json(const std::vector<llm::CheckpointSummary::Part>& parts) {
    auto list = ordered_json::array();
    for (const auto& part : parts) {
        list.push_back({{"name", part.name},
                        {"tensors", part.tensors},
                        {"parameters", part.parameters},
                        {"bytes", part.bytes}});
    }
    return list;
}

ordered_json config_json(const llm::ModelConfig& config) {
    const llm::TextConfig& text = config.text;
    const vision::VisionConfig& vision = config.vision;
    return {{"layers", text.num_hidden_layers},
            {"lightning_layers", text.count(llm::AttentionKind::kLightning)},
            {"softmax_layers", text.count(llm::AttentionKind::kSoftmax)},
            {"hidden_size", text.hidden_size},
            {"attention_heads", text.num_attention_heads},
            {"key_value_heads", text.num_key_value_heads},
            {"head_dim", text.head_dim},
            {"experts", text.num_local_experts},
            {"experts_per_token", text.num_experts_per_tok},
            {"expert_size", text.intermediate_size},
            {"vocab_size", text.vocab_size},
            {"vision_layers", vision.num_hidden_layers},
            {"vision_hidden_size", vision.hidden_size},
            {"tile_size", config.preprocess.tile_size},
            {"patch_size", config.preprocess.patch_size},
            {"grids", config.preprocess.grids.size()}};
}

std::string as_json(const Findings& findings) {
    ordered_json object = {{"folder", findings.folder}};
    if (findings.config) object["config"] = config_json(*findings.config);
    if (findings.summary) {
        const llm::CheckpointSummary& summary = *findings.summary;
        object["fingerprint"] = findings.fingerprint;
        object["shards"] = summary.shards;
        object["tensors"] = summary.tensors;
        object["parameters"] = summary.parameters;
        object["active_parameters"] = summary.active_parameters;
        object["bytes"] = summary.bytes;
        object["parts"] = parts_json(summary.parts);
        object["dtypes"] = parts_json(summary.dtypes);
    }
    if (findings.tokenizer_size) object["tokenizer_size"] = *findings.tokenizer_size;
    object["notes"] = findings.notes;
    object["problems"] = findings.problems;
    return object.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

std::string bytes_text(std::int64_t bytes) {
    return human_bytes(static_cast<std::uint64_t>(bytes)) + " (" + grouped(bytes) + " bytes)";
}

void print_config(Output& output, const llm::ModelConfig& config) {
    const llm::TextConfig& text = config.text;
    const vision::VisionConfig& vision = config.vision;
    output.write(format("layers       %d: %d lightning attention, %d softmax attention\n",
                        text.num_hidden_layers, text.count(llm::AttentionKind::kLightning),
                        text.count(llm::AttentionKind::kSoftmax)));
    output.write(format("width        %d; %d heads of %d, %d key/value heads\n", text.hidden_size,
                        text.num_attention_heads, text.head_dim, text.num_key_value_heads));
    output.write(format("experts      %d a layer, %d used, each %d wide\n", text.num_local_experts,
                        text.num_experts_per_tok, text.intermediate_size));
    output.write("vocabulary   " + grouped(text.vocab_size) + "\n");
    output.write(
        format("vision       %d layers, width %d; tiles of %d pixels, patches of %d, "
               "%zu grids\n",
               vision.num_hidden_layers, vision.hidden_size, config.preprocess.tile_size,
               config.preprocess.patch_size, config.preprocess.grids.size()));
}

void print_parts(Output& output, const char* heading,
                 const std::vector<llm::CheckpointSummary::Part>& parts) {
    output.write(format("\n%-24s %9s %19s  %s\n", heading, "tensors", "parameters", "size"));
    for (const auto& part : parts) {
        output.write(format("%-24s %9s %19s  %s\n", part.name.c_str(),
                            grouped(part.tensors).c_str(), grouped(part.parameters).c_str(),
                            bytes_text(part.bytes).c_str()));
    }
}

void print(const Findings& findings) {
    Output& output = Output::standard();
    output.write("folder       " + findings.folder + "\n");
    if (findings.config) print_config(output, *findings.config);
    if (findings.summary) {
        const llm::CheckpointSummary& summary = *findings.summary;
        output.write("parameters   " + grouped(summary.parameters) + ", of which " +
                     grouped(summary.active_parameters) + " work on a token\n");
        output.write("weights      " + bytes_text(summary.bytes) + " in " +
                     grouped(summary.tensors) + " tensors, " + grouped(summary.shards) +
                     (summary.shards == 1 ? " file\n" : " files\n"));
        output.write("fingerprint  " + findings.fingerprint + "\n");
    }
    if (findings.tokenizer_size) {
        output.write("tokenizer    " + grouped(*findings.tokenizer_size) + " ids\n");
    }
    if (findings.summary) {
        print_parts(output, "part", findings.summary->parts);
        print_parts(output, "type", findings.summary->dtypes);
    }
    output.write("\n");
    for (const std::string& line : findings.notes) output.write("note         " + line + "\n");
    for (const std::string& line : findings.problems) output.write("problem      " + line + "\n");
    if (findings.problems.empty()) output.write("problems     none\n");
}

int run_inspect(const InspectOptions& options) {
    if (!std::filesystem::exists(options.folder)) {
        throw Error(Category::kNotFound, "there is no folder " + options.folder + ".");
    }
    const Findings findings = look_at(options.folder);
    if (options.json) {
        Output::standard().write(as_json(findings));
    } else {
        print(findings);
    }
    Output::standard().flush();
    if (findings.problems.empty()) return kExitDone;
    throw Error(Category::kInput, options.folder + " cannot be used: " + findings.problems.front());
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand(
        "inspect", "Say what a model folder holds and what is wrong with it (reads headers only)");
    const auto options = std::make_shared<InspectOptions>();
    add_json_option(*command, options->json);
    command->add_option("DIR", options->folder, "Model folder in the Hugging Face layout")
        ->type_name("")
        ->required();
    command->callback([options, &action] { action = [options] { return run_inspect(*options); }; });
}

}  // namespace longview::app

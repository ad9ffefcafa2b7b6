// longview-cli selftest: does this program on this machine compute what the model's makers did?
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "app/cli/command.h"
#include "app/cli/options.h"
#include "app/cli/request.h"
#include "app/cli/terminal.h"
#include "app/core/files.h"
#include "app/core/messages_json.h"
#include "kernels/runtime/error.h"

namespace longview::app {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{64} << 20U;
/// Largest difference of a logit. fp32 against fp32: the goal for golden logits. On a GPU
/// activations are bf16 (8 bits): logits of up to 40 through tens of roundings.
constexpr double kCpuTolerance = 2e-3;
constexpr double kCudaTolerance = 0.5;

struct SelftestOptions {
    ModelOptions model;
    std::string golden;
};

struct Golden {
    std::string name;
    std::vector<llm::Message> messages;
    std::vector<float> logits;
    std::string text;
    std::int64_t tokens = 0;
};

std::vector<float> read_floats(const fs::path& path) {
    static_assert(std::endian::native == std::endian::little, "logits.f32 is little-endian");
    const std::string bytes = read_file(path, kMaxFileBytes);
    if (bytes.empty() || bytes.size() % sizeof(float) != 0) {
        throw Error(Category::kInput, path.string() + " is not a row of 32-bit floats.");
    }
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

Golden read_golden(const fs::path& folder) {
    Golden golden;
    golden.name = folder.filename().string();
    std::vector<fs::path> images;
    for (int i = 0;; ++i) {
        const fs::path image = folder / ("image_" + std::to_string(i) + ".png");
        if (!fs::exists(image)) break;
        images.push_back(image);
    }
    const fs::path messages = folder / "messages.json";
    golden.messages =
        parse_messages(read_json(messages, kMaxFileBytes), images, nullptr, messages.string());
    golden.logits = read_floats(folder / "logits.f32");
    const fs::path facts = folder / "golden.json";
    const json object = read_json(facts, kMaxFileBytes);
    golden.text = string_member(object, "greedy_text", facts.string());
    const json ids = object.value("greedy_ids", json());
    if (!ids.is_array() || ids.empty()) {
        throw Error(Category::kInput, facts.string() + ": the list \"greedy_ids\" is missing.");
    }
    golden.tokens = static_cast<std::int64_t>(ids.size());
    return golden;
}

std::vector<fs::path> golden_folders(const fs::path& root) {
    std::vector<fs::path> folders;
    std::error_code failed;
    for (const fs::directory_entry& entry : fs::directory_iterator(root, failed)) {
        if (fs::exists(entry.path() / "golden.json")) folders.push_back(entry.path());
    }
    std::sort(folders.begin(), folders.end());
    return folders;
}

/// Largest absolute difference; NaN anywhere or another count gives infinity.
double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return INFINITY;
    double largest = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(difference <= largest)) largest = std::isnan(difference) ? INFINITY : difference;
    }
    return largest;
}

int run_selftest(const SelftestOptions& options) {
    const fs::path root = options.golden.empty() ? model_folder(options.model.model) / "golden"
                                                 : fs::path(options.golden);
    const std::vector<fs::path> folders = golden_folders(root);
    Output& output = Output::standard();
    if (folders.empty()) {
        if (!options.golden.empty()) {
            throw Error(Category::kNotFound, "there is no golden data in " + root.string() + ".");
        }
        output.write("This model comes with no golden data, so there is nothing to compare.\n");
        return kExitDone;
    }
    const auto engine = load_engine(options.model);
    const llm::ModelInfo& info = engine->info();
    const double tolerance = info.device == "cuda" ? kCudaTolerance : kCpuTolerance;
    const InterruptGuard interrupt(InterruptGuard::Mode::kOnce);
    output.write("model  " + info.name + "\ndevice " + info.device_name + "\n\n");
    output.write(format("%-24s %14s %8s  %s\n", "prompt", "logits differ", "answer", "result"));
    std::size_t failed = 0;
    for (const fs::path& folder : folders) {
        const Golden golden = read_golden(folder);
        const double difference =
            largest_difference(engine->logits(golden.messages), golden.logits);
        llm::Request request;
        request.messages = golden.messages;
        request.max_tokens = golden.tokens;
        const auto answer = run_request(*engine, std::move(request), [](std::string_view) {});
        if (answer.reason == llm::FinishReason::kCancelled) return kExitInterrupted;
        const bool same = answer.text == golden.text;
        const bool passed = same && difference <= tolerance;
        failed += passed ? 0 : 1;
        output.write(format("%-24s %14.2e %8s  %s\n", golden.name.c_str(), difference,
                            same ? "same" : "differs", passed ? "passed" : "FAILED"));
        output.flush();
    }
    output.write(format("\n%zu of %zu passed; logits may differ by %g\n", folders.size() - failed,
                        folders.size(), tolerance));
    output.flush();
    if (failed == 0) return kExitDone;
    throw Error(Category::kBug, std::to_string(failed) + " of " + std::to_string(folders.size()) +
                                    " prompts gave another result than the reference.");
}

}  // namespace

void add_selftest(CLI::App& app, Action& action) {
    CLI::App* command = app.add_subcommand(
        "selftest", "Compare with the logits and answers that the model's makers computed");
    const auto options = std::make_shared<SelftestOptions>();
    add_model_options(*command, options->model);
    command->add_option("--golden", options->golden, "Golden data (default: MODEL/golden)")
        ->type_name("DIR");
    command->callback(
        [options, &action] { action = [options] { return run_selftest(*options); }; });
}

}  // namespace longview::app

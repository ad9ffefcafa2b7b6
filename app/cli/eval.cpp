// longview-cli eval: cases with expected answers, word for word, answered greedily.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "app/cli/command.h"
#include "app/cli/options.h"
#include "app/cli/request.h"
#include "app/cli/terminal.h"
#include "app/core/files.h"
#include "app/core/messages_json.h"
#include "app/core/text.h"
#include "kernels/runtime/error.h"

namespace longview::app {

using nlohmann::json;
using nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{64} << 20U;

struct EvalOptions {
    ModelOptions model;
    std::string cases;
    std::int64_t max_cases = 0;
    std::int64_t max_tokens = 160;  // as the reference answered
    bool json = false;
};

struct Score {
    std::int64_t cases = 0;
    std::int64_t exact = 0;  // equals "expected"
    std::int64_t agree = 0;  // equals "model_answer": what the reference implementation said

    void add(bool is_exact, bool agrees) {
        ++cases;
        exact += is_exact ? 1 : 0;
        agree += agrees ? 1 : 0;
    }
};

struct Case {
    std::string id;
    std::string task;
    std::string expected;
    std::string model_answer;
    std::vector<llm::Message> messages;
};

struct Difference {
    Case asked;
    std::string answer;
};

/// Names in a cases file lie in its folder and never above it.
fs::path beside(const fs::path& folder, const json& name, const std::string& origin) {
    const fs::path path = name.is_string() ? fs::path(name.get<std::string>()) : fs::path();
    const bool climbs = std::find(path.begin(), path.end(), fs::path("..")) != path.end();
    if (path.empty() || path.is_absolute() || climbs) {
        throw Error(Category::kInput, origin + ": a file name is missing or leaves the folder.");
    }
    return folder / path;
}

Case read_case(const json& entry, const fs::path& file, std::size_t number) {
    Case result;
    const json id = entry.is_object() ? entry.value("id", json()) : json();
    result.id = id.is_number_integer() ? id.dump() : std::to_string(number);
    const std::string origin = file.string() + ", case " + result.id;
    result.task = string_member(entry, "task", origin);
    result.expected = string_member(entry, "expected", origin);
    result.model_answer = string_member(entry, "model_answer", origin);
    const fs::path folder = file.parent_path();
    std::vector<fs::path> images;
    for (const json& name : entry.value("images", json::array())) {
        images.push_back(beside(folder, name, origin));
    }
    std::string document;
    const bool has_document = entry.contains("document");
    if (has_document) {
        const fs::path path = beside(folder, entry["document"], origin);
        document = read_file(path, kMaxFileBytes);
        require_utf8(document, path.string());
    }
    result.messages = parse_messages(entry.value("messages", json()), images,
                                     has_document ? &document : nullptr, origin);
    return result;
}

void print_difference(Output& output, const Difference& difference) {
    output.write("case " + difference.asked.id + " (" + difference.asked.task + ")\n");
    output.write("  expected   " + difference.asked.expected + "\n");
    if (difference.asked.model_answer != difference.asked.expected) {
        output.write("  reference  " + difference.asked.model_answer + "\n");
    }
    output.write("  answer     " + difference.answer + "\n");
}

void print_scores(Output& output, const std::map<std::string, Score>& tasks, const Score& all) {
    output.write(format("\n%-32s %6s %6s %6s\n", "task", "cases", "exact", "agree"));
    const auto row = [&](const std::string& name, const Score& score) {
        output.write(
            format("%-32s %6lld %6lld %6lld\n", name.c_str(), static_cast<long long>(score.cases),
                   static_cast<long long>(score.exact), static_cast<long long>(score.agree)));
    };
    for (const auto& [name, score] : tasks) row(name, score);
    row("all", all);
}

std::string as_json(const std::map<std::string, Score>& tasks, const Score& all,
                    const std::vector<Difference>& differences) {
    ordered_json by_task = ordered_json::object();
    for (const auto& [name, score] : tasks) {
        by_task[name] = {{"cases", score.cases}, {"exact", score.exact}, {"agree", score.agree}};
    }
    auto list = ordered_json::array();
    for (const Difference& difference : differences) {
        list.push_back({{"id", difference.asked.id},
                        {"task", difference.asked.task},
                        {"expected", difference.asked.expected},
                        {"model_answer", difference.asked.model_answer},
                        {"answer", difference.answer}});
    }
    const ordered_json object = {{"cases", all.cases},
                                 {"exact", all.exact},
                                 {"agree", all.agree},
                                 {"tasks", std::move(by_task)},
                                 {"differences", std::move(list)}};
    return object.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

int run_eval(const EvalOptions& options) {
    const fs::path file = options.cases;
    const json entries = read_json(file, kMaxFileBytes);
    if (!entries.is_array() || entries.empty()) {
        throw Error(Category::kInput, file.string() + ": a list of cases was expected.");
    }
    std::size_t count = entries.size();
    if (options.max_cases > 0) count = std::min(count, static_cast<std::size_t>(options.max_cases));

    const auto engine = load_engine(options.model);
    Output& output = Output::standard();
    const InterruptGuard interrupt(InterruptGuard::Mode::kOnce);
    std::map<std::string, Score> tasks;
    Score all;
    std::vector<Difference> differences;
    for (std::size_t i = 0; i < count; ++i) {
        Case asked = read_case(entries[i], file, i + 1);
        llm::Request request;
        request.messages = std::move(asked.messages);
        request.max_tokens = options.max_tokens;
        const auto answer = run_request(*engine, std::move(request), [](std::string_view) {});
        if (answer.reason == llm::FinishReason::kCancelled) return kExitInterrupted;
        const bool exact = answer.text == asked.expected;
        const bool agrees = answer.text == asked.model_answer;
        tasks[asked.task].add(exact, agrees);
        all.add(exact, agrees);
        if (exact && agrees) continue;
        differences.push_back({std::move(asked), answer.text});
        if (!options.json) print_difference(output, differences.back());
        output.flush();
    }
    if (options.json) {
        output.write(as_json(tasks, all, differences));
    } else {
        print_scores(output, tasks, all);
    }
    return kExitDone;
}

}  // namespace

void add_eval(CLI::App& app, Action& action) {
    CLI::App* command =
        app.add_subcommand("eval", "Ask the cases of a file and compare with the answers in it");
    const auto options = std::make_shared<EvalOptions>();
    add_model_options(*command, options->model);
    command->add_option("--max", options->max_cases, "Only the first N cases (0: all)")
        ->type_name("N")
        ->check(in_range(0, 1e9));
    command->add_option("--max-tokens", options->max_tokens, "Longest answer")
        ->type_name("N")
        ->check(in_range(1, 1e9))
        ->capture_default_str();
    add_json_option(*command, options->json);
    command->add_option("CASES", options->cases, "DIR/cases.json")->type_name("")->required();
    command->callback([options, &action] { action = [options] { return run_eval(*options); }; });
}

}  // namespace longview::app

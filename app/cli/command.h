// What every subcommand of longview-cli has in common. One file a command.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

namespace CLI {
class App;
}

namespace longview::app {

/// Exit statuses, as the help states them.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

/// A command line that parses but makes no sense, such as an empty question.
class UsageError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// The chosen command, ready to run; returns the exit status and throws longview::Error and
/// UsageError.
using Action = std::function<int()>;

/// Each adds its subcommand; parsing it sets `action`.
void add_ask(CLI::App& app, Action& action);
void add_chat(CLI::App& app, Action& action);
void add_tokenize(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_eval(CLI::App& app, Action& action);
void add_selftest(CLI::App& app, Action& action);

}  // namespace longview::app

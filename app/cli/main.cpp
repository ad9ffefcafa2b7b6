// longview-cli: wires the subcommands, turns errors into one line and an exit status.
#include <CLI/CLI.hpp>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "app/cli/command.h"
#include "app/cli/terminal.h"
#include "app/core/text.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

int fail(int status, const std::string& sentence) {
    std::fprintf(stderr, "error: %s\n", printable(sentence, true).c_str());
    return status;
}

int run(int argc, char** argv) {
    CLI::App app("Longview: ask a vision-language model about pictures and documents, offline.",
                 "longview-cli");
    app.footer(
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped with Ctrl-C.\n"
        "Environment: LONGVIEW_MODEL names the model folder used without --model.");
    app.set_version_flag("--version", "longview-cli " LONGVIEW_VERSION);
    app.require_subcommand(0, 1);
    Action action;
    for (const auto add :
         {add_ask, add_chat, add_tokenize, add_inspect, add_bench, add_eval, add_selftest}) {
        add(app, action);
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& asked) {  // --help, --version
        return app.exit(asked);
    } catch (const CLI::ParseError& error) {
        return fail(kExitUsage, std::string(error.what()) + " (--help shows what is possible)");
    }
    if (!action) throw UsageError("a command is needed");
    const int status = action();
    Output::standard().flush();
    return status;
}

}  // namespace

}  // namespace longview::app

int main(int argc, char** argv) {
    using namespace longview::app;
    // The line editor takes characters apart by the locale; bare machines often name none.
    if (std::setlocale(LC_CTYPE, "") == nullptr || MB_CUR_MAX == 1) {
        std::setlocale(LC_CTYPE, "C.UTF-8");
    }
    // A closed pipe is an error of writing, not a sudden death.
    std::signal(SIGPIPE, SIG_IGN);
    try {
        return run(argc, argv);
    } catch (const UsageError& error) {
        return fail(kExitUsage, std::string(error.what()) + " (--help shows what is possible)");
    } catch (const longview::Error& error) {
        return fail(kExitFailed, error.what());
    } catch (const std::bad_alloc&) {
        return fail(kExitFailed, "there is not enough memory.");
    } catch (const std::exception& error) {
        return fail(kExitFailed, error.what());
    }
}

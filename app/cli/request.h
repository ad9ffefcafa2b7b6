// One question to the engine from the main thread: progress, streamed text, Ctrl-C.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "llm/engine/engine.h"

namespace longview::app {

/// Turns Ctrl-C into a flag for as long as it lives.
class InterruptGuard {
  public:
    enum class Mode {
        kOnce,  // a second Ctrl-C ends the program as usual
        kEvery
    };
    explicit InterruptGuard(Mode mode);
    ~InterruptGuard();
    InterruptGuard(const InterruptGuard&) = delete;
    InterruptGuard& operator=(const InterruptGuard&) = delete;

    static bool taken();
    static void clear();
};

/// Asks and waits. `on_text` hears the answer piece by piece on the calling thread; when it throws
/// (output closed), the request is cancelled first. With an InterruptGuard alive, Ctrl-C cancels
/// the request: the answer so far comes back with FinishReason::kCancelled.
/// Errors: what the engine reports.
llm::Engine::Answer run_request(llm::Engine& engine, llm::Request request,
                                const std::function<void(std::string_view)>& on_text);

}  // namespace longview::app

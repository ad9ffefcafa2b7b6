#include "app/cli/request.h"

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "app/cli/terminal.h"
#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

volatile std::sig_atomic_t interrupted = 0;
struct sigaction previous_action;

void take_interrupt(int) {
    interrupted = 1;
}

/// Events on their way from the engine's thread to the main thread.
class EventQueue {
  public:
    void push(const llm::Event& event) {
        const std::lock_guard lock(mutex_);
        events_.push_back(event);
        arrived_.notify_one();
    }
    std::optional<llm::Event> pop(std::chrono::milliseconds patience) {
        std::unique_lock lock(mutex_);
        if (!arrived_.wait_for(lock, patience, [&] { return !events_.empty(); })) return {};
        llm::Event event = std::move(events_.front());
        events_.pop_front();
        return event;
    }

  private:
    std::mutex mutex_;
    std::condition_variable arrived_;
    std::deque<llm::Event> events_;
};

}  // namespace

InterruptGuard::InterruptGuard(Mode mode) {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = take_interrupt;
    // No SA_RESTART: a read from the terminal must return so that the chat can answer Ctrl-C.
    action.sa_flags = mode == Mode::kOnce ? static_cast<int>(SA_RESETHAND) : 0;
    sigaction(SIGINT, &action, &previous_action);
    // A shell that starts us in the background has Ctrl-C ignored for us; leave it so.
    if (previous_action.sa_handler == SIG_IGN) sigaction(SIGINT, &previous_action, nullptr);
}

InterruptGuard::~InterruptGuard() {
    sigaction(SIGINT, &previous_action, nullptr);
}

bool InterruptGuard::taken() {
    return interrupted != 0;
}

void InterruptGuard::clear() {
    interrupted = 0;
}

llm::Engine::Answer run_request(llm::Engine& engine, llm::Request request,
                                const std::function<void(std::string_view)>& on_text) {
    // Shared, because the engine may still hold the sink when this function leaves.
    const auto queue = std::make_shared<EventQueue>();
    const llm::RequestId id =
        engine.submit(std::move(request), [queue](const llm::Event& event) { queue->push(event); });
    ProgressLine progress;
    std::exception_ptr output_failed;
    llm::Engine::Answer answer;
    bool cancelled = false;
    for (;;) {
        if (!cancelled && (InterruptGuard::taken() || output_failed)) {
            engine.cancel(id);
            cancelled = true;
        }
        // Ctrl-C only sets a flag, so look at it often enough to feel immediate.
        const std::optional<llm::Event> event = queue->pop(std::chrono::milliseconds(20));
        if (!event) continue;
        switch (event->kind) {
            case llm::Event::Kind::kProgress:
                if (event->work_total > 0.0) {
                    progress.show("Reading", event->work_done / event->work_total,
                                  event->seconds_left);
                }
                break;
            case llm::Event::Kind::kText:
                progress.clear();
                answer.text += event->text;
                try {
                    if (!output_failed) on_text(event->text);
                } catch (...) {
                    output_failed = std::current_exception();
                }
                break;
            case llm::Event::Kind::kFinished:
                if (output_failed) std::rethrow_exception(output_failed);
                answer.reason = event->reason;
                answer.statistics = event->statistics;
                return answer;
            case llm::Event::Kind::kFailed:
                throw Error(event->category, event->error);
        }
    }
}

}  // namespace longview::app

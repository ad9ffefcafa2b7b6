#include "llm/engine/engine.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "llm/engine/model.h"

namespace longview::llm {
namespace {

Event failed_event(std::string sentence, Category category) {
    Event event;
    event.kind = Event::Kind::kFailed;
    event.error = std::move(sentence);
    event.category = category;
    return event;
}

Event cancelled_event() {
    Event event;
    event.kind = Event::Kind::kFinished;
    event.reason = FinishReason::kCancelled;
    return event;
}

}  // namespace

Part text_part(std::string text) {
    Part part;
    part.text = std::move(text);
    return part;
}

Part image_part(vision::Image image) {
    Part part;
    part.kind = Part::Kind::kImage;
    part.image = std::make_shared<const vision::Image>(std::move(image));
    return part;
}

const char* finish_reason_name(FinishReason reason) {
    switch (reason) {
        case FinishReason::kStop:
            return "stop";
        case FinishReason::kLength:
            return "length";
        case FinishReason::kCancelled:
            return "cancelled";
    }
    return "stop";
}

struct Engine::Impl {
    /// A request, or (without a sink) some other work for the engine's thread.
    struct Job {
        RequestId id = 0;
        Request request;
        EventSink sink;
        std::function<void()> work;
        std::shared_ptr<CancelFlag> cancel = std::make_shared<CancelFlag>();
    };

    Model model;
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<Job> queue;
    std::shared_ptr<CancelFlag> running_cancel;
    RequestId running = 0;
    RequestId next_id = 1;
    bool stop = false;
    std::thread thread;

    Impl(const EngineOptions& options, const std::function<void(double)>& progress)
        : model(options, progress), thread([this] { loop(); }) {}

    ~Impl() {
        std::deque<Job> waiting;
        {
            const std::lock_guard lock(mutex);
            stop = true;
            if (running_cancel) running_cancel->raise();
            waiting.swap(queue);
        }
        wake.notify_all();
        for (const Job& job : waiting)
            if (job.sink) job.sink(cancelled_event());
        thread.join();
    }

    void loop() {
        while (true) {
            Job job;
            {
                std::unique_lock lock(mutex);
                wake.wait(lock, [this] { return stop || !queue.empty(); });
                if (stop) return;
                job = std::move(queue.front());
                queue.pop_front();
                running = job.id;
                running_cancel = job.cancel;
            }
            run(job);
            const std::lock_guard lock(mutex);
            running = 0;
            running_cancel.reset();
        }
    }

    void run(const Job& job) {
        if (job.work) {
            job.work();
            return;
        }
        try {
            model.answer(job.request, job.sink, *job.cancel);
        } catch (const Error& error) {
            job.sink(failed_event(error.what(), error.category()));
        } catch (const std::bad_alloc&) {
            job.sink(failed_event("not enough memory; close other programs or use a shorter text",
                                  Category::kMemory));
        } catch (const std::exception& error) {
            job.sink(failed_event(std::string("internal error: ") + error.what(), Category::kBug));
        }
    }

    RequestId push(Job job) {
        const std::lock_guard lock(mutex);
        job.id = next_id++;
        const RequestId id = job.id;
        queue.push_back(std::move(job));
        wake.notify_all();
        return id;
    }

    /// Runs work on the engine's thread, behind the requests, and waits for its result.
    template <typename Work>
    auto on_thread(Work work) {
        using Result = decltype(work());
        auto task = std::make_shared<std::packaged_task<Result()>>(std::move(work));
        std::future<Result> result = task->get_future();
        Job job;
        job.work = [task] { (*task)(); };
        push(std::move(job));
        return result.get();
    }
};

std::unique_ptr<Engine> Engine::load(const EngineOptions& options,
                                     const std::function<void(double)>& progress) {
    return std::unique_ptr<Engine>(new Engine(std::make_unique<Impl>(options, progress)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

const ModelInfo& Engine::info() const {
    return impl_->model.info();
}
const Tokenizer& Engine::tokenizer() const {
    return impl_->model.tokenizer();
}
const ModelConfig& Engine::config() const {
    return impl_->model.config();
}

RequestId Engine::submit(Request request, EventSink sink) {
    Impl::Job job;
    job.request = std::move(request);
    job.sink = sink ? std::move(sink) : [](const Event&) {};
    return impl_->push(std::move(job));
}

void Engine::cancel(RequestId id) {
    EventSink sink;
    {
        const std::lock_guard lock(impl_->mutex);
        if (impl_->running == id && impl_->running_cancel) impl_->running_cancel->raise();
        for (auto it = impl_->queue.begin(); it != impl_->queue.end(); ++it) {
            if (it->id != id || !it->sink) continue;
            sink = std::move(it->sink);
            impl_->queue.erase(it);
            break;
        }
    }
    if (sink) sink(cancelled_event());
}

Engine::Answer Engine::ask(Request request, const EventSink& sink) {
    Answer answer;
    // Shared: the engine's thread may still be inside set_value() when this one goes on.
    const auto last = std::make_shared<std::promise<Event>>();
    submit(std::move(request), [&answer, &sink, last](const Event& event) {
        if (event.kind == Event::Kind::kText) answer.text += event.text;
        if (sink) sink(event);
        if (event.kind == Event::Kind::kFinished || event.kind == Event::Kind::kFailed)
            last->set_value(event);
    });
    const Event end = last->get_future().get();
    if (end.kind == Event::Kind::kFailed) throw Error(end.category, end.error);
    answer.reason = end.reason;
    answer.statistics = end.statistics;
    return answer;
}

void Engine::save_state(const std::filesystem::path& path) {
    impl_->on_thread([&] { impl_->model.save_state(path); });
}

std::int64_t Engine::load_state(const std::filesystem::path& path) {
    return impl_->on_thread([&] { return impl_->model.load_state(path); });
}

Engine::Speed Engine::measure(std::int64_t prompt_tokens, std::int64_t decode_tokens) {
    return impl_->on_thread([&] { return impl_->model.measure(prompt_tokens, decode_tokens); });
}

std::vector<float> Engine::logits(const std::vector<Message>& messages) {
    return impl_->on_thread([&] { return impl_->model.logits(messages); });
}

}  // namespace longview::llm

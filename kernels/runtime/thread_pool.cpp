#include "kernels/runtime/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/runtime/cancel.h"

namespace longview {
namespace {

// A decode step runs some sixty operators of 10-50 microseconds; waking a sleeping thread costs
// about as much as one of them, so workers spin this long before they sleep.
constexpr int kSpins = 4000;

int allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1u, std::thread::hardware_concurrency());
}

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

struct ThreadPool::State {
    std::vector<std::thread> threads;
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<std::uint64_t> generation{0};
    std::atomic<int> running{0};
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> stop{false};
    const std::function<void(std::int64_t, std::int64_t, int)>* body = nullptr;
    std::int64_t count = 0;
    std::int64_t grain = 1;
    const CancelFlag* cancel = nullptr;
    std::mutex error_mutex;
    std::exception_ptr error;

    void work(int thread) {
        try {
            while (true) {
                const std::int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
                if (begin >= count || (cancel != nullptr && cancel->raised())) break;
                (*body)(begin, std::min(begin + grain, count), thread);
            }
        } catch (...) {
            next.store(count, std::memory_order_relaxed);
            const std::lock_guard lock(error_mutex);
            if (!error) error = std::current_exception();
        }
    }

    void loop(int thread) {
        std::uint64_t seen = 0;
        while (true) {
            int spins = 0;
            while (generation.load(std::memory_order_acquire) == seen && !stop.load()) {
                if (++spins < kSpins) {
                    pause_briefly();
                    continue;
                }
                std::unique_lock lock(mutex);
                wake.wait(lock, [&] { return generation.load() != seen || stop.load(); });
            }
            if (stop.load()) return;
            seen = generation.load(std::memory_order_acquire);
            work(thread);
            running.fetch_sub(1, std::memory_order_release);
        }
    }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
    const int total = threads > 0 ? threads : allowed_cpus();
    for (int i = 1; i < total; ++i) {
        state_->threads.emplace_back([state = state_.get(), i] { state->loop(i); });
    }
}

ThreadPool::~ThreadPool() {
    {
        const std::lock_guard lock(state_->mutex);
        state_->stop.store(true);
    }
    state_->wake.notify_all();
    for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::size() const {
    return static_cast<int>(state_->threads.size()) + 1;
}

void ThreadPool::set_cancel_flag(const CancelFlag* flag) {
    state_->cancel = flag;
}

void ThreadPool::parallel_for(std::int64_t count, std::int64_t grain,
                              const std::function<void(std::int64_t, std::int64_t, int)>& body) {
    if (count <= 0) return;
    State& s = *state_;
    s.body = &body;
    s.count = count;
    s.grain = std::max<std::int64_t>(1, grain);
    s.next.store(0, std::memory_order_relaxed);
    s.error = nullptr;
    const bool alone = s.threads.empty() || count <= s.grain;
    if (!alone) {
        s.running.store(static_cast<int>(s.threads.size()), std::memory_order_relaxed);
        {
            const std::lock_guard lock(s.mutex);
            s.generation.fetch_add(1, std::memory_order_release);
        }
        s.wake.notify_all();
    }
    s.work(0);
    if (!alone) {
        int spins = 0;
        while (s.running.load(std::memory_order_acquire) != 0) {
            if (++spins < kSpins) {
                pause_briefly();
            } else {
                std::this_thread::yield();
            }
        }
    }
    if (s.error) std::rethrow_exception(s.error);
    if (s.cancel != nullptr) s.cancel->check();
}

}  // namespace longview

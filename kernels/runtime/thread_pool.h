// Worker threads for the CPU backend. One pool an engine; used from one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace longview {

class CancelFlag;

class ThreadPool {
  public:
    /// threads 0: as many as the process may run on. The calling thread counts as one.
    explicit ThreadPool(int threads = 0);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const;

    /// Calls body(begin, end, thread) on pieces of at most `grain` items that together cover
    /// [0, count) once, and waits for all. Which thread gets which piece varies; thread is in
    /// [0, size()). The first exception of a piece is rethrown here after all have ended.
    /// With a cancel flag set, pieces not yet begun are skipped and Category::kCancelled is thrown.
    void parallel_for(std::int64_t count, std::int64_t grain,
                      const std::function<void(std::int64_t, std::int64_t, int)>& body);

    /// The flag that parallel_for polls between pieces; null for none. Not owned.
    void set_cancel_flag(const CancelFlag* flag);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace longview

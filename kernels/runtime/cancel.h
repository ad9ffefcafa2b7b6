// A flag that another thread raises to stop work. Long operators poll it.
#pragma once

#include <atomic>

#include "kernels/runtime/error.h"

namespace longview {

class CancelFlag {
  public:
    void raise() noexcept { raised_.store(true, std::memory_order_relaxed); }
    void clear() noexcept { raised_.store(false, std::memory_order_relaxed); }
    bool raised() const noexcept { return raised_.load(std::memory_order_relaxed); }
    /// Throws Error of Category::kCancelled when raised.
    void check() const {
        if (raised()) throw Error(Category::kCancelled, "stopped on request");
    }

  private:
    std::atomic<bool> raised_{false};
};

}  // namespace longview

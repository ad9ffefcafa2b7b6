#include "llm/checkpoint/bus_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace longview::llm::bus_guard {
namespace {

constexpr std::uintptr_t kFree = 0;
constexpr std::uintptr_t kClaimed = 1;  // no address; the slot is being filled or emptied

struct Range {
    std::atomic<std::uintptr_t> begin{kFree};
    std::atomic<std::uintptr_t> end{0};
    std::atomic<bool> faulted{false};
};

// Plain static storage of lock-free atomics: all that a signal handler may touch.
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);
std::array<Range, kMaxRanges> ranges;
struct sigaction previous_action;
std::uintptr_t page_size = 4096;

/// Puts zeros from the faulting page to the end of the range. The rest of the range goes with it:
/// after a truncation all of it is gone, and a mapping for each page would exhaust their number.
bool replace_with_zeros(std::uintptr_t address) {
    for (Range& range : ranges) {
        const std::uintptr_t begin = range.begin.load(std::memory_order_acquire);
        const std::uintptr_t end = range.end.load(std::memory_order_relaxed);
        if (begin <= kClaimed || address < begin || address >= end) continue;
        const std::uintptr_t page = address / page_size * page_size;
        void* const zeros = mmap(reinterpret_cast<void*>(page), end - page, PROT_READ,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (zeros == MAP_FAILED) return false;
        range.faulted.store(true, std::memory_order_release);
        return true;
    }
    return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
    const int saved_errno = errno;
    if (replace_with_zeros(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
        errno = saved_errno;
        return;
    }
    if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
        previous_action.sa_sigaction(signal, info, context);
    } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
        previous_action.sa_handler(signal);
    } else {
        // Not ours: the faulting instruction runs again and the default action ends the process.
        struct sigaction fallback = {};
        fallback.sa_handler = SIG_DFL;
        sigaction(SIGBUS, &fallback, nullptr);
    }
    errno = saved_errno;
}

void install() {
    page_size = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
}

}  // namespace

int add(void* data, std::size_t size) {
    static std::once_flag installed;
    std::call_once(installed, install);
    for (int slot = 0; slot < kMaxRanges; ++slot) {
        Range& range = ranges[static_cast<std::size_t>(slot)];
        std::uintptr_t expected = kFree;
        if (!range.begin.compare_exchange_strong(expected, kClaimed)) continue;
        const auto begin = reinterpret_cast<std::uintptr_t>(data);
        const std::uintptr_t pages = (size + page_size - 1) / page_size;
        range.faulted.store(false);
        range.end.store(begin + pages * page_size);
        range.begin.store(begin, std::memory_order_release);
        return slot;
    }
    return -1;
}

void remove(int slot) {
    if (slot >= 0) ranges[static_cast<std::size_t>(slot)].begin.store(kFree);
}

bool faulted(int slot) {
    return slot >= 0 && ranges[static_cast<std::size_t>(slot)].faulted.load();
}

}  // namespace longview::llm::bus_guard

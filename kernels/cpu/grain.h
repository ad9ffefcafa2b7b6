// How finely an operator's tasks are handed to the thread pool.
#pragma once

#include <algorithm>
#include <cstdint>

namespace longview::kernels::cpu {

/// Tasks in a piece of parallel_for: all of them where handing some to other threads would take
/// about as long as the work, 1e6 floating-point operations or 10-20 us; else one.
inline std::int64_t tasks_per_piece(std::int64_t tasks, double operations) {
    return operations < 1e6 ? std::max<std::int64_t>(tasks, 1) : 1;
}

}  // namespace longview::kernels::cpu

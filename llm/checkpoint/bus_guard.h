// Keeps a failing read of mapped memory from ending the process. Private to llm/checkpoint.
#pragma once

#include <cstddef>

namespace longview::llm::bus_guard {

/// How many ranges can be guarded at once; also the most shards a checkpoint may have.
inline constexpr int kMaxRanges = 4096;

/// Guards [data, data + size), which must be a private mapping of whole pages from `data` on. The
/// first call installs the SIGBUS handler of the process; faults outside guarded ranges go to the
/// handler that was there before. Returns a slot, or -1 when all are taken. Any thread.
int add(void* data, std::size_t size);
/// Ends the guard; call before unmapping. -1 is ignored.
void remove(int slot);
/// Whether a fault was caught in the range of this slot.
bool faulted(int slot);

}  // namespace longview::llm::bus_guard

// Named ranges on a profiler's timeline; next to nothing when no profiler listens.
#pragma once

#include <nvtx3/nvToolsExt.h>

namespace longview::kernels::cuda {

class Range {
  public:
    explicit Range(const char* name) { nvtxRangePushA(name); }
    ~Range() { nvtxRangePop(); }
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;
};

}  // namespace longview::kernels::cuda

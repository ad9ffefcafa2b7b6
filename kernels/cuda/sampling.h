// What the sampling kernel reports.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace longview::kernels::cuda {

struct SampleResult {
    std::int32_t id = 0;       // chosen; the vocabulary's size when nothing may be chosen
    std::int32_t broken = -1;  // an id whose score is NaN or infinite, or -1
    float value = 0.0F;        // the largest score after penalties
};

/// p.history and p.suppressed are device memory. Writes *out (device memory).
void sample(const Context& c, const SampleParams& p, SampleResult* out);

}  // namespace longview::kernels::cuda

// To be included before Highway: the attention kernels hold accumulators in arrays, which vector
// types without a fixed size (SVE, RVV) do not allow.
#pragma once

#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif

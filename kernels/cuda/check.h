// CUDA status codes as errors of our own; see runtime/cuda/check.h.
#pragma once

#include "kernels/runtime/cuda/check.h"  // IWYU pragma: export

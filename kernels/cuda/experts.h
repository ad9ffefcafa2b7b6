// The two forms of the mixture of experts: experts.cu chooses. Not used by CudaBackend.
#pragma once

#include "kernels/cuda/ops.h"

namespace longview::kernels::cuda {

constexpr std::int64_t kMaxExperts = 256;

/// Rows sorted by expert and one library product an expert and matrix. Waits for the stream once
/// for each 32768 pairs of row and expert, to learn the counts. hidden and intermediate are
/// multiples of 8, weights 16-byte aligned; x and out as they like. Shapes are checked already.
void experts_sorted(const Context& c, const ExpertsParams& p);

}  // namespace longview::kernels::cuda

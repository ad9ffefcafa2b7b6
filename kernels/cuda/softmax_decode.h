// Attention of a few queries over a long cache; softmax_attention() chooses it.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace longview::kernels::cuda {

/// As softmax_attention(), whose checks it relies on. The launch does not depend on the position,
/// so that it can be recorded into a graph.
void softmax_decode(const Context& c, const SoftmaxAttentionParams& p);

}  // namespace longview::kernels::cuda

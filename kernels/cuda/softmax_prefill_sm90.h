// Causal attention for many queries on Hopper GPUs. Compiled into targets for them alone
// (LONGVIEW_HAVE_SM90A).
#pragma once

#include "kernels/cuda/flash.cuh"

namespace longview::kernels::cuda {

/// Whether the kernel takes this problem: heads of 128 dims, pages that hold whole tiles of 128
/// keys, queries and results whose rows are 16-byte aligned.
bool fits_sm90(const FlashArgs& args, const KvView& kv);

/// args.row_blocks is set here. Only on compute capability 9.0.
void softmax_prefill_sm90(const Context& c, FlashArgs args, const KvView& kv);

}  // namespace longview::kernels::cuda

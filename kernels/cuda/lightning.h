// What the parts of lightning attention share: how a call is cut, and the two forms. Used by
// lightning.cu and its tests; everyone else calls lightning_attention of ops.h.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/context.h"

namespace longview::kernels::cuda {

/// Pieces of a tile with at most so many rows go through the recurrence.
constexpr std::int64_t kLightningStepRows = 8;

/// How the tiles of a prefill are shared out. With one segment, a block takes a head's slice of v
/// columns through all tiles. With several, their states are computed first and combined:
///   1. every segment but the last: its own contribution to the state (k and v only)
///   2. a scan over the segments of a head: the state each of them begins with
///   3. outputs, all segments at once; the last one leaves the new state
struct LightningPlan {
    std::int64_t segments = 1;
    std::int64_t segment_tiles = 0;  // tiles of a segment, the last may have fewer
    int stages = 0;                  // tiles in shared memory at a time
};

/// For `tiles` tiles of kLightningTile rows. Pure. Errors: kUnsupported for a head_dim without a
/// kernel, or where two tiles do not fit into a block's shared memory.
LightningPlan plan_lightning(int heads, int head_dim, std::int64_t tiles,
                             const DeviceLimits& device);

/// Tiles a call touches whose first row stands at `position`.
constexpr std::int64_t lightning_tiles(std::int64_t position, std::int64_t rows) {
    return (position % kLightningTile + rows + kLightningTile - 1) / kLightningTile;
}

/// The blocked form, any number of rows. p.qkv: 16-byte aligned rows, stride below 2^30.
void lightning_prefill(const Context& c, const LightningParams& p, const LightningPlan& plan);

/// The recurrence, meant for few rows. p.state: 16-byte aligned.
void lightning_steps(const Context& c, const LightningParams& p);

}  // namespace longview::kernels::cuda

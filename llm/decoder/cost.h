// How much arithmetic a prefill takes, so that progress and the time left are honest: reading
// grows faster than the number of tokens. Units: multiply-adds.
#pragma once

#include <cstdint>

#include "llm/checkpoint/config.h"

namespace longview::llm {

/// Work of `tokens` positions beginning at `position` in one layer of a kind.
double layer_work(const TextConfig& config, AttentionKind kind, std::int64_t position,
                  std::int64_t tokens);

/// The same over all layers, without the head.
double prefill_work(const TextConfig& config, std::int64_t position, std::int64_t tokens);

/// Work of one picture tile in the tower and the projector.
double view_work(const vision::VisionConfig& config);

}  // namespace longview::llm

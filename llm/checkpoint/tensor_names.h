// To which part of the model a tensor belongs. Private to llm/checkpoint.
#pragma once

#include <cstddef>
#include <string_view>

namespace longview::llm {

/// In the order of model-spec 9.3.
enum class Part {
    kExperts,
    kLightningAttention,
    kSoftmaxAttention,
    kRouterGates,
    kNorms,
    kEmbeddingAndHead,
    kVisionTower,
    kProjector,
};
inline constexpr std::size_t kPartCount = 8;

/// "experts", "lightning attention", ...
const char* part_name(Part part);

/// Part of a tensor of expected_tensors().
Part part_of(std::string_view name);

}  // namespace longview::llm

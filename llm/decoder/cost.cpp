#include "llm/decoder/cost.h"

namespace longview::llm {

double layer_work(const TextConfig& c, AttentionKind kind, std::int64_t position,
                  std::int64_t tokens) {
    const double n = static_cast<double>(tokens);
    const double hidden = c.hidden_size;
    const double width = static_cast<double>(c.num_attention_heads) * c.head_dim;
    double work =
        3.0 * hidden * c.intermediate_size * c.num_experts_per_tok + hidden * c.num_local_experts;
    if (kind == AttentionKind::kLightning) {
        constexpr double kTile = 64.0;  // scores and values inside a tile, then the state
        work += 5.0 * hidden * width + width * (kTile + 2.0 * c.head_dim);
        return n * work;
    }
    const double kv_width = static_cast<double>(c.num_key_value_heads) * c.head_dim;
    work += hidden * (2.0 * width + 2.0 * kv_width);
    const double mean_keys = static_cast<double>(position) + n / 2.0;
    return n * (work + 2.0 * width * mean_keys);
}

double prefill_work(const TextConfig& c, std::int64_t position, std::int64_t tokens) {
    return c.count(AttentionKind::kLightning) *
               layer_work(c, AttentionKind::kLightning, position, tokens) +
           c.count(AttentionKind::kSoftmax) *
               layer_work(c, AttentionKind::kSoftmax, position, tokens);
}

double view_work(const vision::VisionConfig& c) {
    const double side = static_cast<double>(c.image_size) / c.patch_size;
    const double patches = side * side;
    const double tokens = patches + 1.0;
    const double hidden = c.hidden_size;
    const double layer = tokens * (4.0 * hidden * hidden + 2.0 * hidden * c.intermediate_size +
                                   2.0 * tokens * hidden);
    const double embed = patches * hidden * 3.0 * c.patch_size * c.patch_size;
    const double projector =
        patches * (hidden * c.text_hidden_size +
                   static_cast<double>(c.text_hidden_size) * c.text_hidden_size);
    return c.num_hidden_layers * layer + embed + projector;
}

}  // namespace longview::llm

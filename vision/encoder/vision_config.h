// Shape of the vision tower and projector: vision_config and related keys of config.json.
#pragma once

namespace longview::vision {

struct VisionConfig {
    int hidden_size = 0;
    int intermediate_size = 0;
    int num_hidden_layers = 0;
    int num_attention_heads = 0;
    int num_channels = 0;
    int image_size = 0;
    int patch_size = 0;
    float layer_norm_eps = 0.0F;
    int text_hidden_size = 0;  // width of the projector's output

    int head_dim() const { return hidden_size / num_attention_heads; }
};

}  // namespace longview::vision

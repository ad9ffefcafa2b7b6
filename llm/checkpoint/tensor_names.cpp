#include "llm/checkpoint/tensor_names.h"

#include <utility>

#include "llm/checkpoint/checkpoint.h"

namespace longview::llm {
namespace {

constexpr std::string_view kVision = "vision_tower.vision_model.";
constexpr std::string_view kLanguage = "language_model.model.";

/// Collects specs under a common prefix.
class Names {
  public:
    explicit Names(std::vector<TensorSpec>& out) : out_(&out) {}
    void set_prefix(std::string prefix) { prefix_ = std::move(prefix); }
    void add(std::string_view name, std::vector<std::int64_t> shape) {
        out_->push_back({prefix_ + std::string(name), std::move(shape)});
    }
    /// A layer with bias: weight [out, in] and bias [out].
    void add_linear(const std::string& name, std::int64_t out, std::int64_t in) {
        add(name + ".weight", {out, in});
        add(name + ".bias", {out});
    }
    /// A layer norm: weight and bias [width].
    void add_norm(const std::string& name, std::int64_t width) {
        add(name + ".weight", {width});
        add(name + ".bias", {width});
    }

  private:
    std::vector<TensorSpec>* out_;
    std::string prefix_;
};

void add_attention(const TextConfig& text, AttentionKind kind, Names& names) {
    const std::int64_t hidden = text.hidden_size;
    const std::int64_t width = std::int64_t{text.num_attention_heads} * text.head_dim;
    const std::int64_t kv_width = std::int64_t{text.num_key_value_heads} * text.head_dim;
    if (kind == AttentionKind::kLightning) {
        names.add("self_attn.qkv_proj.weight", {3 * width, hidden});
        names.add("self_attn.output_gate.weight", {width, hidden});
        names.add("self_attn.norm.weight", {width});
        names.add("self_attn.out_proj.weight", {hidden, width});
        return;
    }
    names.add("self_attn.q_proj.weight", {width, hidden});
    names.add("self_attn.k_proj.weight", {kv_width, hidden});
    names.add("self_attn.v_proj.weight", {kv_width, hidden});
    names.add("self_attn.o_proj.weight", {hidden, width});
}

void add_language(const TextConfig& text, Names& names) {
    const std::int64_t hidden = text.hidden_size;
    const std::int64_t intermediate = text.intermediate_size;
    names.set_prefix("language_model.");
    names.add("model.embed_tokens.weight", {text.vocab_size, hidden});
    for (std::size_t layer = 0; layer < text.attn_type_list.size(); ++layer) {
        names.set_prefix(std::string(kLanguage) + "layers." + std::to_string(layer) + ".");
        names.add("input_layernorm.weight", {hidden});
        names.add("post_attention_layernorm.weight", {hidden});
        add_attention(text, text.attn_type_list[layer], names);
        names.add("block_sparse_moe.gate.weight", {text.num_local_experts, hidden});
        for (int expert = 0; expert < text.num_local_experts; ++expert) {
            const std::string name = "block_sparse_moe.experts." + std::to_string(expert);
            names.add(name + ".w1.weight", {intermediate, hidden});
            names.add(name + ".w2.weight", {hidden, intermediate});
            names.add(name + ".w3.weight", {intermediate, hidden});
        }
    }
    names.set_prefix("language_model.");
    names.add("model.norm.weight", {hidden});
    names.add("lm_head.weight", {text.vocab_size, hidden});
}

void add_vision(const vision::VisionConfig& vision, Names& names) {
    const std::int64_t hidden = vision.hidden_size;
    const std::int64_t patch = vision.patch_size;
    const std::int64_t patches_per_side = vision.image_size / vision.patch_size;
    names.set_prefix(std::string(kVision));
    names.add("embeddings.class_embedding", {hidden});
    names.add("embeddings.patch_embedding.weight", {hidden, vision.num_channels, patch, patch});
    names.add("embeddings.position_embedding.weight",
              {patches_per_side * patches_per_side + 1, hidden});
    names.add_norm("pre_layrnorm", hidden);  // misspelt as published
    for (int layer = 0; layer < vision.num_hidden_layers; ++layer) {
        names.set_prefix(std::string(kVision) + "encoder.layers." + std::to_string(layer) + ".");
        for (const char* projection : {"k_proj", "v_proj", "q_proj", "out_proj"}) {
            names.add_linear(std::string("self_attn.") + projection, hidden, hidden);
        }
        names.add_norm("layer_norm1", hidden);
        names.add_linear("mlp.fc1", vision.intermediate_size, hidden);
        names.add_linear("mlp.fc2", hidden, vision.intermediate_size);
        names.add_norm("layer_norm2", hidden);
    }
    const std::int64_t text_hidden = vision.text_hidden_size;
    names.set_prefix({});
    names.add_linear("multi_modal_projector.linear_1", text_hidden, hidden);
    names.add_linear("multi_modal_projector.linear_2", text_hidden, text_hidden);
    names.add("image_newline", {text_hidden});
}

bool contains(std::string_view text, std::string_view piece) {
    return text.find(piece) != std::string_view::npos;
}

}  // namespace

std::vector<TensorSpec> expected_tensors(const ModelConfig& config) {
    std::vector<TensorSpec> out;
    Names names(out);
    add_language(config.text, names);
    add_vision(config.vision, names);
    return out;
}

const char* part_name(Part part) {
    switch (part) {
        case Part::kExperts:
            return "experts";
        case Part::kLightningAttention:
            return "lightning attention";
        case Part::kSoftmaxAttention:
            return "softmax attention";
        case Part::kRouterGates:
            return "router gates";
        case Part::kNorms:
            return "norms";
        case Part::kEmbeddingAndHead:
            return "embedding and head";
        case Part::kVisionTower:
            return "vision tower";
        case Part::kProjector:
            return "projector and newline";
    }
    return "";
}

Part part_of(std::string_view name) {
    if (name.starts_with(kVision)) return Part::kVisionTower;
    if (!name.starts_with("language_model.")) return Part::kProjector;
    if (contains(name, ".experts.")) return Part::kExperts;
    if (contains(name, ".block_sparse_moe.gate.")) return Part::kRouterGates;
    if (contains(name, "embed_tokens") || contains(name, "lm_head")) {
        return Part::kEmbeddingAndHead;
    }
    if (!contains(name, ".self_attn.")) return Part::kNorms;
    for (const char* softmax : {".q_proj.", ".k_proj.", ".v_proj.", ".o_proj."}) {
        if (contains(name, softmax)) return Part::kSoftmaxAttention;
    }
    return Part::kLightningAttention;
}

}  // namespace longview::llm

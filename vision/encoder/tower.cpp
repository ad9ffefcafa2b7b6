#include "vision/encoder/tower.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

namespace longview::vision {

namespace {

// Eight tiles of the real tower are 4616 rows; their scratch memory is 170 MB in fp32. A GPU takes
// more at a time: about two chunks of text, so that small products fill it too.
constexpr std::int64_t kTilesAtOnce = 8;

const VisionConfig& checked(const VisionConfig& c, const PreprocessConfig& p) {
    const bool sizes = c.hidden_size > 0 && c.intermediate_size > 0 && c.num_hidden_layers > 0 &&
                       c.num_attention_heads > 0 && c.hidden_size % c.num_attention_heads == 0 &&
                       c.patch_size > 0 && c.image_size % c.patch_size == 0 && c.num_channels == 3;
    if (!sizes) {
        throw Error(Category::kInput,
                    "vision_config in config.json does not describe a vision tower; use the "
                    "config.json that was published with the model");
    }
    if (c.image_size != p.tile_size || c.patch_size != p.patch_size) {
        throw Error(Category::kInput, "config.json sees tiles of " + std::to_string(c.image_size) +
                                          " pixels, preprocessor_config.json cuts tiles of " +
                                          std::to_string(p.tile_size) +
                                          "; the files do not belong together");
    }
    return c;
}

}  // namespace

Tower::Layer::Layer(const WeightReader& reader, const VisionConfig& c)
    : norm1(reader.below("layer_norm1."), c.hidden_size),
      norm2(reader.below("layer_norm2."), c.hidden_size),
      q(reader.below("self_attn.q_proj."), c.hidden_size, c.hidden_size),
      k(reader.below("self_attn.k_proj."), c.hidden_size, c.hidden_size),
      v(reader.below("self_attn.v_proj."), c.hidden_size, c.hidden_size),
      out(reader.below("self_attn.out_proj."), c.hidden_size, c.hidden_size),
      fc1(reader.below("mlp.fc1."), c.intermediate_size, c.hidden_size),
      fc2(reader.below("mlp.fc2."), c.hidden_size, c.intermediate_size) {}

/// One block that a layer uses twice: for q, k, v and the attention's output, then for the MLP.
struct Tower::Scratch {
    Scratch(kernels::Backend& backend, const VisionConfig& config, std::int64_t rows)
        : dtype(backend.activation_dtype()),
          hidden(config.hidden_size),
          intermediate(config.intermediate_size),
          buffer(
              backend.allocate(static_cast<std::size_t>(rows * std::max(4 * hidden, intermediate)) *
                               size_of(dtype))) {}

    /// Matrix number `which` of four [rows, hidden].
    Matrix attention(int which, std::int64_t rows) const {
        const auto offset = static_cast<std::size_t>(which * rows * hidden) * size_of(dtype);
        return {buffer.as<std::byte>() + offset, dtype, rows, hidden, hidden};
    }
    Matrix mlp(std::int64_t rows) const {
        return {buffer.data(), dtype, rows, intermediate, intermediate};
    }

    DType dtype;
    std::int64_t hidden, intermediate;
    Buffer buffer;
};

Tower::Tower(kernels::Backend& backend, const VisionConfig& config,
             const PreprocessConfig& preprocess, const WeightReader& reader)
    : backend_(backend),
      config_(checked(config, preprocess)),
      preprocess_(preprocess),
      patch_weight_(reader.matrix(
          "embeddings.patch_embedding.weight",
          {config.hidden_size, config.num_channels, config.patch_size, config.patch_size})),
      class_embedding_(reader.floats("embeddings.class_embedding", {config.hidden_size})),
      positions_(reader.floats("embeddings.position_embedding.weight",
                               {preprocess.patches_per_tile() + 1, config.hidden_size})),
      pre_norm_(reader.below("pre_layrnorm."), config.hidden_size) {
    layers_.reserve(static_cast<std::size_t>(config.num_hidden_layers));
    for (int i = 0; i < config.num_hidden_layers; ++i)
        layers_.emplace_back(reader.below("encoder.layers." + std::to_string(i) + "."), config);
}

void Tower::run(const std::uint8_t* tiles, std::int64_t num_tiles, Matrix out,
                const std::function<void(std::int64_t)>& done) const {
    LONGVIEW_CHECK(out.rows == num_tiles * rows_per_tile() && out.cols == config_.hidden_size,
                   "the tower's output has a row for each patch and the class");
    if (num_tiles == 0) return;
    // Batches of equal size: nine tiles go as five and four.
    const std::int64_t most =
        std::max(kTilesAtOnce, 2 * backend_.preferred_chunk_tokens() / rows_per_tile());
    const std::int64_t batches = (num_tiles + most - 1) / most;
    const std::int64_t batch = (num_tiles + batches - 1) / batches;
    const Scratch scratch(backend_, config_, batch * rows_per_tile());
    const std::int64_t tile_bytes = std::int64_t{preprocess_.tile_size} * preprocess_.tile_size * 3;
    for (std::int64_t first = 0; first < num_tiles; first += batch) {
        const std::int64_t count = std::min(batch, num_tiles - first);
        const Matrix x = out.slice(first * rows_per_tile(), count * rows_per_tile());
        embed(tiles + first * tile_bytes, count, x);
        for (const Layer& layer : layers_) run_layer(layer, count, scratch, x);
        if (done) done(first + count);
    }
}

void Tower::embed(const std::uint8_t* tiles, std::int64_t num_tiles, Matrix x) const {
    const auto bytes = static_cast<std::size_t>(num_tiles * preprocess_.tile_size) *
                       static_cast<std::size_t>(preprocess_.tile_size) * 3;
    const Buffer input = backend_.allocate(bytes);
    backend_.copy_in(input.data(), tiles, bytes);
    kernels::PatchEmbedParams p;
    p.tiles = input.as<std::uint8_t>();
    p.num_tiles = num_tiles;
    p.tile_size = preprocess_.tile_size;
    p.patch_size = preprocess_.patch_size;
    std::copy(preprocess_.mean.begin(), preprocess_.mean.end(), p.mean);
    std::copy(preprocess_.std.begin(), preprocess_.std.end(), p.std);
    p.weight = patch_weight_.view;
    p.class_embedding = class_embedding_.as<float>();
    p.positions = positions_.as<float>();
    p.gain = pre_norm_.gain.as<float>();
    p.bias = pre_norm_.bias.as<float>();
    p.eps = config_.layer_norm_eps;
    p.out = x;
    backend_.patch_embed(p);
    backend_.synchronize();  // `input` goes away
}

void Tower::run_layer(const Layer& layer, std::int64_t num_tiles, const Scratch& scratch,
                      Matrix x) const {
    using kernels::Activation;
    const Matrix q = scratch.attention(0, x.rows), k = scratch.attention(1, x.rows),
                 v = scratch.attention(2, x.rows), attended = scratch.attention(3, x.rows);
    const auto project = [&](const LayerNorm& norm,
                             std::span<const kernels::LinearOutput> outputs) {
        kernels::NormLinearParams p;
        p.x = x;
        p.norm = kernels::Norm::kLayer;
        p.gain = norm.gain.as<float>();
        p.norm_bias = norm.bias.as<float>();
        p.eps = config_.layer_norm_eps;
        p.outputs = outputs;
        backend_.norm_linear(p);
    };
    const auto add_to_x = [&](ConstMatrix in, const Linear& linear) {
        kernels::LinearResidualParams p;
        p.in = in;
        p.weight = linear.weight.view;
        p.bias = linear.bias.as<float>();
        p.skip = x;
        p.out = x;
        backend_.linear_residual(p);
    };
    const auto output = [](const Linear& linear, Activation activation, Matrix out) {
        return kernels::LinearOutput{linear.weight.view, linear.bias.as<float>(), activation, out};
    };

    const std::array attention_in = {output(layer.q, Activation::kNone, q),
                                     output(layer.k, Activation::kNone, k),
                                     output(layer.v, Activation::kNone, v)};
    project(layer.norm1, attention_in);
    kernels::VitAttentionParams a;
    a.q = q, a.k = k, a.v = v;
    a.num_tiles = num_tiles;
    a.tokens = rows_per_tile();
    a.heads = config_.num_attention_heads;
    a.scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim()));
    a.out = attended;
    backend_.vit_attention(a);
    add_to_x(attended, layer.out);

    const Matrix middle = scratch.mlp(x.rows);
    const std::array mlp_in = {output(layer.fc1, Activation::kGelu, middle)};
    project(layer.norm2, mlp_in);
    add_to_x(middle, layer.fc2);
}

}  // namespace longview::vision

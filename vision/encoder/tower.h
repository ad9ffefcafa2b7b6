// The vision tower alone: tiles to patch features before the projector (model-spec 7.5). Used by
// Encoder and by its tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/backend.h"
#include "vision/encoder/vision_config.h"
#include "vision/encoder/weights.h"
#include "vision/image/tiling.h"

namespace longview::vision {

class Tower {
  public:
    /// `reader` stands at "vision_tower.vision_model.".
    Tower(kernels::Backend& backend, const VisionConfig& config, const PreprocessConfig& preprocess,
          const WeightReader& reader);

    /// Rows of a tile in run()'s output: the class row, then one a patch.
    std::int64_t rows_per_tile() const { return preprocess_.patches_per_tile() + 1; }

    /// Tiles [num_tiles, tile_size, tile_size, 3] in host memory through all layers, a bounded
    /// number at a time, into out [num_tiles * rows_per_tile(), hidden_size]. A tile's result does
    /// not depend on the others. `done` hears how many tiles are finished.
    /// Errors: kMemory, kDevice, kCancelled (within a layer's operator).
    void run(const std::uint8_t* tiles, std::int64_t num_tiles, Matrix out,
             const std::function<void(std::int64_t)>& done) const;

  private:
    struct Layer {
        Layer(const WeightReader& reader, const VisionConfig& config);

        LayerNorm norm1, norm2;
        Linear q, k, v, out;
        Linear fc1, fc2;
    };
    struct Scratch;

    void embed(const std::uint8_t* tiles, std::int64_t num_tiles, Matrix x) const;
    void run_layer(const Layer& layer, std::int64_t num_tiles, const Scratch& scratch,
                   Matrix x) const;

    kernels::Backend& backend_;
    VisionConfig config_;
    PreprocessConfig preprocess_;
    kernels::Weight patch_weight_;  // [hidden, channels * patch * patch]
    Buffer class_embedding_;        // [hidden]
    Buffer positions_;              // [patches + 1, hidden]
    LayerNorm pre_norm_;
    std::vector<Layer> layers_;
};

}  // namespace longview::vision

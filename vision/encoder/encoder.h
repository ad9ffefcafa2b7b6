// Vision tower and projector: tiles in, rows of the text model's width out (model-spec 7.5, 7.6).
// Written once against kernels/backend.h. Used by llm/engine from its thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/backend.h"
#include "kernels/runtime/weight_source.h"
#include "vision/encoder/vision_config.h"
#include "vision/image/tiling.h"

namespace longview::vision {

class Encoder {
  public:
    /// Places the tower's and projector's weights. The source must outlive the encoder.
    Encoder(kernels::Backend& backend, const VisionConfig& config,
            const PreprocessConfig& preprocess, const WeightSource& weights);
    ~Encoder();

    /// Writes the packed features of one picture (thumbnail, then the grid with a newline after
    /// each row) into out [plan.tokens, text_hidden_size]. `done` hears the number of views
    /// finished so far. Errors: kMemory, kDevice, kCancelled.
    void encode(const TiledImage& image, Matrix out, const std::function<void(int)>& done = {});

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace longview::vision

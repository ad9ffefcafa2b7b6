#include "vision/encoder/encoder.h"

#include <algorithm>
#include <array>
#include <vector>

#include "vision/encoder/tower.h"
#include "vision/encoder/weights.h"

namespace longview::vision {

namespace {

// Rows that go through the projector at once, on a GPU more. The real model needs 4 x 6144 values
// for each: 100 MB in fp32.
constexpr std::int64_t kProjectorRows = 1024;

Matrix make_matrix(const Buffer& buffer, DType dtype, std::int64_t rows, std::int64_t cols) {
    return {buffer.data(), dtype, rows, cols, cols};
}

}  // namespace

struct Encoder::Impl {
    Impl(kernels::Backend& b, const VisionConfig& c, const PreprocessConfig& p,
         const WeightReader& reader)
        : backend(b),
          config(c),
          preprocess(p),
          tower(b, c, p, reader.below("vision_tower.vision_model.")),
          linear1(reader.below("multi_modal_projector.linear_1."), c.text_hidden_size,
                  c.hidden_size),
          linear2(reader.below("multi_modal_projector.linear_2."), c.text_hidden_size,
                  c.text_hidden_size),
          newline(reader.floats("image_newline", {c.text_hidden_size})) {}

    Matrix allocate(Buffer& buffer, std::int64_t rows, std::int64_t cols) const {
        const DType dtype = backend.activation_dtype();
        buffer = backend.allocate(static_cast<std::size_t>(rows * cols) * size_of(dtype));
        return make_matrix(buffer, dtype, rows, cols);
    }
    void linear(const Linear& layer, kernels::Activation activation, ConstMatrix x,
                Matrix out) const {
        const std::array outputs = {
            kernels::LinearOutput{layer.weight.view, layer.bias.as<float>(), activation, out}};
        kernels::NormLinearParams p;
        p.x = x;
        p.outputs = outputs;
        backend.norm_linear(p);
    }
    void pack(ConstMatrix features, std::span<const std::int32_t> index, Matrix out) const;

    kernels::Backend& backend;
    VisionConfig config;
    PreprocessConfig preprocess;
    Tower tower;
    Linear linear1, linear2;
    Buffer newline;  // [text_hidden_size]
};

/// Projects the tower's rows in the order of the text; those that un-padding drops are never
/// projected.
void Encoder::Impl::pack(ConstMatrix features, std::span<const std::int32_t> index,
                         Matrix out) const {
    const auto total = static_cast<std::int64_t>(index.size());
    const std::int64_t most =
        std::min(total, std::max(kProjectorRows, backend.preferred_chunk_tokens()));
    Buffer buffers[3];
    const Matrix picked = allocate(buffers[0], most, config.hidden_size);
    const Matrix middle = allocate(buffers[1], most, config.text_hidden_size);
    const Matrix projected = allocate(buffers[2], most, config.text_hidden_size);
    const auto patches = static_cast<std::int32_t>(preprocess.patches_per_tile());
    std::vector<std::int32_t> rows;    // of `features` that this part of the text needs
    std::vector<std::int32_t> places;  // for each position: which of them, or -1
    for (std::int64_t first = 0; first < total; first += most) {
        const std::int64_t count = std::min(most, total - first);
        rows.clear();
        places.clear();
        for (const std::int32_t i :
             index.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count))) {
            places.push_back(i < 0 ? -1 : static_cast<std::int32_t>(rows.size()));
            // One class row stands before the patches of each view.
            if (i >= 0) rows.push_back(i + i / patches + 1);
        }
        const auto needed = static_cast<std::int64_t>(rows.size());
        backend.gather_rows(features, nullptr, rows, picked.slice(0, needed));
        linear(linear1, kernels::Activation::kGelu, picked.slice(0, needed),
               middle.slice(0, needed));
        linear(linear2, kernels::Activation::kNone, middle.slice(0, needed),
               projected.slice(0, needed));
        backend.gather_rows(projected.slice(0, needed), newline.as<float>(), places,
                            out.slice(first, count));
    }
    backend.synchronize();  // the buffers go away
}

Encoder::Encoder(kernels::Backend& backend, const VisionConfig& config,
                 const PreprocessConfig& preprocess, const WeightSource& weights)
    : impl_(std::make_unique<Impl>(backend, config, preprocess,
                                   WeightReader(backend, weights, ""))) {}

Encoder::~Encoder() = default;

void Encoder::encode(const TiledImage& image, Matrix out, const std::function<void(int)>& done) {
    const Impl& m = *impl_;
    const std::int64_t views = image.plan.views();
    const auto tile_bytes = static_cast<std::size_t>(m.preprocess.tile_size) *
                            static_cast<std::size_t>(m.preprocess.tile_size) * 3;
    LONGVIEW_CHECK(image.tiles.size() == tile_bytes * static_cast<std::size_t>(views),
                   "a cut picture holds the tiles of its plan");
    LONGVIEW_CHECK(out.rows == image.plan.tokens && out.cols == m.config.text_hidden_size,
                   "features are written a row a token");
    Buffer buffer;
    const Matrix features =
        m.allocate(buffer, views * m.tower.rows_per_tile(), m.config.hidden_size);
    m.tower.run(image.tiles.data(), views, features, [&](std::int64_t finished) {
        // The last ones count as finished when their features are packed.
        if (done && finished < views) done(static_cast<int>(finished));
    });
    m.pack(features, feature_index(image.plan, m.preprocess), out);
    if (done) done(static_cast<int>(views));
}

}  // namespace longview::vision

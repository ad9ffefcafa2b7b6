// From a picture to the tiles that the tower sees, and the order in which their features enter the
// text (model-spec 7.2-7.6). No dependency beyond the standard library: the engine and a GPU
// machine without OpenCV use it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "vision/image/image.h"

namespace longview::vision {

struct Size {
    int width = 0;
    int height = 0;
    bool operator==(const Size&) const = default;
};

/// preprocessor_config.json and the parts of config.json that shape pictures.
struct PreprocessConfig {
    int tile_size = 0;   // side of a view in pixels
    int patch_size = 0;  // tile_size is a multiple
    std::array<float, 3> mean{};
    std::array<float, 3> std{};
    std::vector<Size> grids;  // image_grid_pinpoints in file order, multiples of tile_size

    int patches_per_side() const { return tile_size / patch_size; }
    std::int64_t patches_per_tile() const {
        return std::int64_t{patches_per_side()} * patches_per_side();
    }
};

/// Everything that follows from a picture's size.
struct TilePlan {
    Size image;                                 // original
    Size canvas;                                // chosen grid in pixels
    Size resized;                               // keep-ratio size inside the canvas
    int offset_x = 0, offset_y = 0;             // of the resized picture on the canvas
    int columns = 0, rows = 0;                  // tiles
    int feature_columns = 0, feature_rows = 0;  // after un-padding, without the newline column
    int crop_x = 0, crop_y = 0;                 // patches dropped on the left / top

    int views() const { return 1 + columns * rows; }
    /// Positions in the text: thumbnail + feature_rows * (feature_columns + 1 newline).
    std::int64_t tokens = 0;
};

/// Chooses the grid and computes the plan.
/// Errors: kInput when a side is 0 or the aspect ratio is beyond 1:200.
TilePlan plan_tiles(Size image, const PreprocessConfig& config);

/// Views as the tower takes them: [views, tile_size, tile_size, 3], thumbnail first, then the
/// grid row by row; padding is black.
struct TiledImage {
    TilePlan plan;
    std::vector<std::uint8_t> tiles;
};
TiledImage cut_tiles(const Image& image, const PreprocessConfig& config);

/// For each of plan.tokens positions: view * patches_per_tile + patch, or -1 for the newline.
std::vector<std::int32_t> feature_index(const TilePlan& plan, const PreprocessConfig& config);

/// Bicubic resize, bit-exact with Pillow's Image.resize(size, BICUBIC) on RGB (model-spec 7.4).
Image resize_bicubic(const Image& image, Size size);

}  // namespace longview::vision

// Grid choice, tiles, and the order of features (model-spec 7.2-7.6).
#include "vision/image/tiling.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/runtime/error.h"

namespace longview::vision {

namespace {

constexpr int kMaxAspect = 200;  // beyond it a side of the resized picture vanishes

void check_size(Size image) {
    if (image.width <= 0 || image.height <= 0) {
        throw Error(Category::kInput, "a picture of " + std::to_string(image.width) + " x " +
                                          std::to_string(image.height) +
                                          " pixels cannot be shown to the model; both sides must "
                                          "be at least 1 pixel");
    }
    const std::int64_t longer = std::max(image.width, image.height);
    const std::int64_t shorter = std::min(image.width, image.height);
    if (longer > shorter * kMaxAspect) {
        throw Error(Category::kInput, "a picture of " + std::to_string(image.width) + " x " +
                                          std::to_string(image.height) +
                                          " pixels is too long and thin: one side may "
                                          "be at most " +
                                          std::to_string(kMaxAspect) +
                                          " times the other; crop it and try again");
    }
}

/// The candidate that keeps most pixels, then wastes least, then comes first.
Size choose_grid(Size image, const std::vector<Size>& grids) {
    LONGVIEW_CHECK(!grids.empty(), "the preprocessor lists at least one grid");
    Size best = grids.front();
    std::int64_t best_kept = -1, best_waste = 0;
    for (const Size grid : grids) {
        const double scale = std::min(static_cast<double>(grid.width) / image.width,
                                      static_cast<double>(grid.height) / image.height);
        const auto scaled_area = static_cast<std::int64_t>(image.width * scale) *
                                 static_cast<std::int64_t>(image.height * scale);
        const std::int64_t kept = std::min(scaled_area, std::int64_t{image.width} * image.height);
        const std::int64_t waste = std::int64_t{grid.width} * grid.height - kept;
        if (kept > best_kept || (kept == best_kept && waste < best_waste)) {
            best = grid;
            best_kept = kept;
            best_waste = waste;
        }
    }
    return best;
}

/// What `part` becomes when `whole` is scaled to `to`, rounded down but never to nothing.
int scaled(int part, int whole, int to) {
    return std::max(1, static_cast<int>(std::int64_t{part} * to / whole));
}

void copy_rect(const std::uint8_t* from, std::size_t from_stride, std::uint8_t* to,
               std::size_t to_stride, int width, int height) {
    for (int y = 0; y < height; ++y) {
        std::memcpy(to, from, static_cast<std::size_t>(width) * 3);
        from += from_stride;
        to += to_stride;
    }
}

/// The part of the placed picture that lies on the tile at (column, row).
void fill_tile(const Image& placed, const TilePlan& plan, int tile_size, int column, int row,
               std::uint8_t* tile) {
    const int left = std::max(column * tile_size, plan.offset_x);
    const int right = std::min((column + 1) * tile_size, plan.offset_x + placed.width);
    const int top = std::max(row * tile_size, plan.offset_y);
    const int bottom = std::min((row + 1) * tile_size, plan.offset_y + placed.height);
    if (left >= right || top >= bottom) return;
    const std::size_t from_stride = static_cast<std::size_t>(placed.width) * 3;
    const std::size_t to_stride = static_cast<std::size_t>(tile_size) * 3;
    copy_rect(placed.rgb.data() + static_cast<std::size_t>(top - plan.offset_y) * from_stride +
                  static_cast<std::size_t>(left - plan.offset_x) * 3,
              from_stride,
              tile + static_cast<std::size_t>(top - row * tile_size) * to_stride +
                  static_cast<std::size_t>(left - column * tile_size) * 3,
              to_stride, right - left, bottom - top);
}

}  // namespace

TilePlan plan_tiles(Size image, const PreprocessConfig& config) {
    check_size(image);
    LONGVIEW_CHECK(
        config.patch_size > 0 && config.tile_size > 0 && config.tile_size % config.patch_size == 0,
        "a tile is a whole number of patches");
    TilePlan plan;
    plan.image = image;
    plan.canvas = choose_grid(image, config.grids);
    plan.columns = plan.canvas.width / config.tile_size;
    plan.rows = plan.canvas.height / config.tile_size;
    plan.feature_columns = plan.columns * config.patches_per_side();
    plan.feature_rows = plan.rows * config.patches_per_side();

    // Cross products: the comparison of w/h with W/H without rounding.
    const bool wider = std::int64_t{image.width} * plan.canvas.height >
                       std::int64_t{plan.canvas.width} * image.height;
    if (wider) {
        plan.resized = {plan.canvas.width, scaled(image.height, image.width, plan.canvas.width)};
        plan.offset_y = (plan.canvas.height - plan.resized.height) / 2;
        const int kept = scaled(image.height, image.width, plan.feature_columns);
        plan.crop_y = (plan.feature_rows - kept) / 2;
        plan.feature_rows -= 2 * plan.crop_y;
    } else {
        plan.resized = {scaled(image.width, image.height, plan.canvas.height), plan.canvas.height};
        plan.offset_x = (plan.canvas.width - plan.resized.width) / 2;
        const int kept = scaled(image.width, image.height, plan.feature_rows);
        plan.crop_x = (plan.feature_columns - kept) / 2;
        plan.feature_columns -= 2 * plan.crop_x;
    }
    plan.tokens =
        config.patches_per_tile() + std::int64_t{plan.feature_rows} * (plan.feature_columns + 1);
    return plan;
}

TiledImage cut_tiles(const Image& image, const PreprocessConfig& config) {
    TiledImage out;
    out.plan = plan_tiles({image.width, image.height}, config);
    const int tile = config.tile_size;
    const std::size_t tile_bytes =
        static_cast<std::size_t>(tile) * static_cast<std::size_t>(tile) * 3;
    out.tiles.assign(tile_bytes * static_cast<std::size_t>(out.plan.views()), 0);
    const Image thumbnail = resize_bicubic(image, {tile, tile});
    std::copy(thumbnail.rgb.begin(), thumbnail.rgb.end(), out.tiles.begin());

    const Image placed = resize_bicubic(image, out.plan.resized);
    std::uint8_t* next = out.tiles.data() + tile_bytes;
    for (int row = 0; row < out.plan.rows; ++row) {
        for (int column = 0; column < out.plan.columns; ++column) {
            fill_tile(placed, out.plan, tile, column, row, next);
            next += tile_bytes;
        }
    }
    return out;
}

std::vector<std::int32_t> feature_index(const TilePlan& plan, const PreprocessConfig& config) {
    const int side = config.patches_per_side();
    const auto patches = static_cast<std::int32_t>(config.patches_per_tile());
    std::vector<std::int32_t> index;
    index.reserve(static_cast<std::size_t>(plan.tokens));
    for (std::int32_t patch = 0; patch < patches; ++patch) index.push_back(patch);
    for (int y = plan.crop_y; y < plan.crop_y + plan.feature_rows; ++y) {
        for (int x = plan.crop_x; x < plan.crop_x + plan.feature_columns; ++x) {
            const int view = 1 + (y / side) * plan.columns + x / side;
            index.push_back(view * patches + (y % side) * side + x % side);
        }
        index.push_back(-1);
    }
    return index;
}

}  // namespace longview::vision

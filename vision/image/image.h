// Pictures in memory and their decoding. Used by the applications; the engine takes Image only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace longview::vision {

/// 8-bit RGB, [height, width, 3], upright.
struct Image {
    int width = 0;
    int height = 0;
    std::vector<std::uint8_t> rgb;
};

enum class AlphaBackground { kWhite, kBlack };

/// Limits are checked against the file's header, before pixels are allocated
/// (notes-reliability 3.4).
struct DecodeOptions {
    AlphaBackground background = AlphaBackground::kWhite;
    int max_side = 32768;
    std::int64_t max_pixels = 100'000'000;
    int max_aspect = 200;
};

enum class ImageFormat { kUnknown, kPng, kJpeg, kBmp, kGif, kWebp, kTiff };

/// What the header says, before any decoding.
struct ImageHeader {
    ImageFormat format = ImageFormat::kUnknown;
    int width = 0;
    int height = 0;
    int orientation = 1;  // EXIF 1..8; width and height are as stored, before the turn
};

/// Reads format and size from the first bytes, never from a name's extension.
/// Errors: Category::kInput (damaged, truncated), kUnsupported (not a picture of a known format).
ImageHeader read_image_header(std::span<const std::byte> file, std::string_view name);

/// Decodes the first frame: PNG, JPEG, BMP, GIF, WebP, TIFF; 8 or 16 bit, grey, palette, CMYK,
/// alpha composited on the background, EXIF orientation applied. `name` is used in errors.
/// Errors: as read_image_header, and kInput naming measured value and limit when one is exceeded.
Image decode_image(std::span<const std::byte> file, std::string_view name,
                   const DecodeOptions& options = {});

/// decode_image of a regular file of at most 512 MiB. Errors also: kNotFound, kIo.
Image load_image(const std::filesystem::path& path, const DecodeOptions& options = {});

}  // namespace longview::vision

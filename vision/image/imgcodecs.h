// Loads the imgcodecs plugin when a picture needs it. Private to vision/image.
#pragma once

#include <cstdint>
#include <vector>

#include "vision/image/formats.h"

namespace longview::vision {

/// Decodes a WebP or TIFF file of width x height through the plugin.
/// Errors: kInput (damaged), kUnsupported when the plugin or OpenCV's imgcodecs is not installed,
/// naming what to install.
Pixels decode_with_imgcodecs(const std::vector<std::uint8_t>& bytes, int width, int height,
                             const FileView& file);

}  // namespace longview::vision

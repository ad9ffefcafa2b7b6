// Pictures to PNG, for conversations kept in a file.
#pragma once

#include <string>

#include "vision/image/image.h"

namespace longview::app {

/// The picture as a PNG file of 8-bit RGB; decode_image gives the same pixels back.
/// Errors: kMemory.
std::string encode_png(const vision::Image& image);

}  // namespace longview::app

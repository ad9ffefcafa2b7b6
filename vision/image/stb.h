// stb_image behind a fence: it sees only streams that a format reader of this folder has checked
// and rewritten, and may hold only as much memory as such a stream can need.
#pragma once

#include <cstdint>
#include <vector>

#include "vision/image/formats.h"

namespace longview::vision {

/// Decodes a cleaned PNG, JPEG or BMP to 8 bits and `channels` (3 or 4). budget_bytes bounds what
/// the decoder holds at any moment. `file` is for errors only.
/// Errors: kInput (damaged, or more data than the size allows), kMemory.
Pixels decode_with_stb(const std::vector<std::uint8_t>& clean, int channels,
                       std::size_t budget_bytes, const FileView& file);

}  // namespace longview::vision

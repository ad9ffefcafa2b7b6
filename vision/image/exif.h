// The one thing this program wants from EXIF: how the camera was held.
#pragma once

#include <cstddef>
#include <span>

namespace longview::vision {

/// Orientation 1..8 (TIFF tag 274) of the first directory in a TIFF structure, with or without
/// "Exif\0\0" before it; 1 where there is none or the structure is damaged. Never throws: a broken
/// note about a picture is no reason to refuse the picture. Follows no link beyond the first
/// directory, so loops cannot hold it.  Source: CIPA DC-008 (Exif 2.32), 4.6.
int exif_orientation(std::span<const std::byte> exif) noexcept;

}  // namespace longview::vision

#include "vision/image/exif.h"

#include <cstdint>
#include <cstring>

namespace longview::vision {

namespace {

constexpr std::uint32_t kOrientationTag = 274;
constexpr std::uint32_t kTypeShort = 3;

/// Numbers of either byte order; 0 past the end.
struct TiffBytes {
    std::span<const std::byte> bytes;
    bool big_endian = false;

    std::uint32_t u8(std::size_t at) const {
        return at < bytes.size() ? std::to_integer<std::uint32_t>(bytes[at]) : 0;
    }
    std::uint32_t u16(std::size_t at) const {
        return big_endian ? (u8(at) << 8) | u8(at + 1) : u8(at) | (u8(at + 1) << 8);
    }
    std::uint32_t u32(std::size_t at) const {
        return big_endian ? (u16(at) << 16) | u16(at + 2) : u16(at) | (u16(at + 2) << 16);
    }
};

}  // namespace

int exif_orientation(std::span<const std::byte> exif) noexcept {
    constexpr std::size_t kPrefix = 6;
    if (exif.size() >= kPrefix && std::memcmp(exif.data(), "Exif\0\0", kPrefix) == 0)
        exif = exif.subspan(kPrefix);
    if (exif.size() < 8) return 1;
    TiffBytes tiff{exif};
    if (std::memcmp(exif.data(), "MM\0*", 4) == 0) {
        tiff.big_endian = true;
    } else if (std::memcmp(exif.data(), "II*\0", 4) != 0) {
        return 1;
    }
    const std::size_t directory = tiff.u32(4);
    const std::size_t entries = tiff.u16(directory);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + i * 12;
        if (entry + 12 > exif.size()) return 1;
        if (tiff.u16(entry) != kOrientationTag) continue;
        const std::uint32_t value = tiff.u16(entry + 8);
        const bool well_formed = tiff.u16(entry + 2) == kTypeShort && tiff.u32(entry + 4) == 1 &&
                                 value >= 1 && value <= 8;
        return well_formed ? static_cast<int>(value) : 1;
    }
    return 1;
}

}  // namespace longview::vision

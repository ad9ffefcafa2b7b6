// BMP: every header variant is read here and rewritten as one; stb_image reads the pixels.
// Source: Microsoft, "Bitmap Storage" and BITMAPV5HEADER.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "vision/image/stb.h"

namespace longview::vision {

namespace {

constexpr std::size_t kFileHeader = 14;
constexpr std::size_t kCoreHeader = 12;  // OS/2 1.x
constexpr std::size_t kInfoHeader = 40;
constexpr std::size_t kV4Header = 108;
enum Compression : std::uint32_t { kPlain = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3 };

struct BmpLayout {
    int width = 0;
    int height = 0;
    bool top_down = false;
    std::uint32_t bits = 0;
    std::size_t header_size = 0;
    std::size_t pixels_at = 0;
    std::size_t palette_entries = 0;
    std::uint32_t red = 0, green = 0, blue = 0, alpha = 0;  // masks of 16 and 32 bits

    std::size_t row_bytes() const { return (static_cast<std::size_t>(width) * bits + 31) / 32 * 4; }
};

void read_masks(const FileView& file, std::uint32_t compression, BmpLayout& layout) {
    if (compression == kBitFields) {
        const std::size_t at = kFileHeader + kInfoHeader;  // inside or right after the header
        layout.red = file.le32(at);
        layout.green = file.le32(at + 4);
        layout.blue = file.le32(at + 8);
        if (layout.header_size >= kInfoHeader + 16) layout.alpha = file.le32(at + 12);
    } else if (layout.bits == 16) {
        layout.red = 0x7C00, layout.green = 0x03E0, layout.blue = 0x001F;
    } else {
        layout.red = 0xFF0000, layout.green = 0xFF00, layout.blue = 0xFF;  // the rest is reserved
    }
    for (const std::uint32_t mask : {layout.red, layout.green, layout.blue}) {
        if (mask == 0) file.damaged("a colour has no bits");
    }
    for (const std::uint32_t mask : {layout.red, layout.green, layout.blue, layout.alpha}) {
        if (std::popcount(mask) > 8) file.unsupported("more than 8 bits a colour");
        const int top = mask == 0 ? 0 : 32 - std::countl_zero(mask);
        if (mask != 0 && top - std::countr_zero(mask) != std::popcount(mask))
            file.damaged("the bits of a colour are not side by side");
    }
}

void read_size(const FileView& file, BmpLayout& layout) {
    const bool core = layout.header_size == kCoreHeader;
    const std::int64_t width =
        core ? std::int64_t{file.le16(18)} : std::int64_t{static_cast<std::int32_t>(file.le32(18))};
    const std::int64_t height =
        core ? std::int64_t{file.le16(20)} : std::int64_t{static_cast<std::int32_t>(file.le32(22))};
    if (width <= 0 || height == 0 || height == INT32_MIN) {
        file.damaged("it says it is " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels");
    }
    layout.width = static_cast<int>(width);
    layout.height = static_cast<int>(height < 0 ? -height : height);
    layout.top_down = height < 0;
}

BmpLayout read_layout(const FileView& file) {
    BmpLayout layout;
    layout.pixels_at = file.le32(10);
    layout.header_size = file.le32(14);
    const std::size_t known[] = {kCoreHeader, kInfoHeader, 52, 56, kV4Header, 124};
    if (std::find(std::begin(known), std::end(known), layout.header_size) == std::end(known))
        file.unsupported("a header of " + std::to_string(layout.header_size) + " bytes");
    read_size(file, layout);
    const bool core = layout.header_size == kCoreHeader;
    layout.bits = file.le16(core ? 24 : 28);
    const std::uint32_t compression = core ? kPlain : file.le32(30);
    if (compression == kRle8 || compression == kRle4) file.unsupported("run-length compression");
    if (compression != kPlain && compression != kBitFields)
        file.unsupported("compression " + std::to_string(compression));
    switch (layout.bits) {
        case 1:
        case 4:
        case 8: {
            const std::size_t most = std::size_t{1} << layout.bits;
            const std::size_t used = core ? 0 : file.le32(46);
            layout.palette_entries = used == 0 || used > most ? most : used;
            break;
        }
        case 24:
            break;
        case 16:
        case 32:
            read_masks(file, compression, layout);
            break;
        default:
            file.unsupported(std::to_string(layout.bits) + " bits a pixel");
    }
    if (compression == kBitFields && layout.bits != 16 && layout.bits != 32)
        file.damaged("colour masks with " + std::to_string(layout.bits) + " bits a pixel");
    return layout;
}

class Writer {
  public:
    void le16(std::uint32_t v) { bytes.push_back(v & 0xFF), bytes.push_back((v >> 8) & 0xFF); }
    void le32(std::uint32_t v) { le16(v & 0xFFFF), le16(v >> 16); }
    std::vector<std::uint8_t> bytes;
};

/// The same picture with the header variant that stb_image reads without guessing: 40 bytes and a
/// palette of 256, 40 bytes, or 108 bytes with masks.
std::vector<std::uint8_t> rewrite(const FileView& file, const BmpLayout& layout) {
    const bool masks = layout.bits == 16 || layout.bits == 32;
    const bool palette = layout.bits <= 8;
    const std::size_t header = masks ? kV4Header : kInfoHeader;
    const std::size_t pixels_at = kFileHeader + header + (palette ? 1024 : 0);
    const std::size_t pixel_bytes = layout.row_bytes() * static_cast<std::size_t>(layout.height);
    const auto pixels = file.part(layout.pixels_at, pixel_bytes);

    Writer out;
    out.bytes.reserve(pixels_at + pixel_bytes);
    out.bytes.push_back('B'), out.bytes.push_back('M');
    out.le32(0), out.le32(0);  // file size, reserved: unused
    out.le32(static_cast<std::uint32_t>(pixels_at));
    out.le32(static_cast<std::uint32_t>(header));
    out.le32(static_cast<std::uint32_t>(layout.width));
    out.le32(static_cast<std::uint32_t>(layout.top_down ? -layout.height : layout.height));
    out.le16(1), out.le16(layout.bits);
    out.le32(masks ? kBitFields : kPlain);
    out.bytes.resize(kFileHeader + kInfoHeader);
    if (masks) {
        out.le32(layout.red), out.le32(layout.green), out.le32(layout.blue);
        out.le32(layout.alpha);
        out.bytes.resize(kFileHeader + kV4Header);
    }
    if (palette) {
        const std::size_t entry = layout.header_size == kCoreHeader ? 3 : 4;
        const std::size_t at = kFileHeader + layout.header_size;
        for (std::size_t i = 0; i < layout.palette_entries; ++i)
            out.le32(file.le24(at + i * entry));
        out.bytes.resize(pixels_at);  // indices beyond the end are black
    }
    const auto* const first = reinterpret_cast<const std::uint8_t*>(pixels.data());
    out.bytes.insert(out.bytes.end(), first, first + pixel_bytes);
    return std::move(out.bytes);
}

}  // namespace

ImageHeader bmp_header(const FileView& file) {
    const BmpLayout layout = read_layout(file);
    return {ImageFormat::kBmp, layout.width, layout.height, 1};
}

Pixels decode_bmp(const FileView& file, const ImageHeader&) {
    const BmpLayout layout = read_layout(file);
    const std::size_t pixels =
        static_cast<std::size_t>(layout.width) * static_cast<std::size_t>(layout.height);
    return decode_with_stb(rewrite(file, layout), layout.alpha != 0 ? 4 : 3,
                           4 * pixels + (std::size_t{1} << 16), file);
}

}  // namespace longview::vision

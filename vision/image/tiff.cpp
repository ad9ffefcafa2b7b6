// TIFF: the first directory is read and checked here; the plugin decodes it.
// Source: Adobe, TIFF revision 6.0, and its Technical Note 2 for JPEG.
#include <algorithm>
#include <array>
#include <optional>

#include "vision/image/imgcodecs.h"

namespace longview::vision {

namespace {

enum Tag : std::uint32_t {
    kWidth = 256,
    kHeight = 257,
    kBits = 258,
    kCompression = 259,
    kOrientation = 274,
    kStripOffsets = 273,
    kSamples = 277,
    kStripBytes = 279,
    kTileWidth = 322,
    kTileHeight = 323,
    kTileOffsets = 324,
    kTileBytes = 325,
    kExtraSamples = 338,
    kSampleFormat = 339,
};

struct Value {
    std::uint32_t type = 0;
    std::uint32_t count = 0;
    std::size_t at = 0;  // of the first value
};

/// The first directory. Strict where the decoder would guess: tags in order, none twice, all values
/// inside the file.
class Directory {
  public:
    explicit Directory(const FileView& file) : file_(file), big_endian_(file.u8(0) == 'M') {
        begin_ = u32(4);
        entries_ = u16(begin_);
        if (entries_ == 0) file.damaged("its directory is empty");
        file.need(begin_ + 2, entries_ * 12 + 4);
        std::uint32_t before = 0;
        for (std::size_t i = 0; i < entries_; ++i) {
            const std::uint32_t tag = u16(entry_at(i));
            if (i != 0 && tag <= before) file.damaged("its directory is out of order");
            before = tag;
        }
    }

    std::optional<Value> find(std::uint32_t tag) const {
        for (std::size_t i = 0; i < entries_; ++i) {
            const std::size_t at = entry_at(i);
            if (u16(at) != tag) continue;
            Value value{u16(at + 2), u32(at + 4), at + 8};
            const std::size_t bytes = std::size_t{value.count} * type_size(value.type);
            if (value.count == 0 || bytes == 0)
                file_.damaged("entry " + std::to_string(tag) + " of its directory is malformed");
            if (bytes > 4) value.at = u32(at + 8);
            file_.need(value.at, bytes);
            return value;
        }
        return std::nullopt;
    }

    std::uint32_t number(const Value& value, std::size_t index = 0) const {
        const std::size_t size = type_size(value.type);
        const std::size_t at = value.at + index * size;
        return size == 1 ? file_.u8(at) : size == 2 ? u16(at) : u32(at);
    }
    std::uint32_t number(std::uint32_t tag, std::uint32_t otherwise) const {
        const auto value = find(tag);
        return value ? number(*value) : otherwise;
    }
    std::uint32_t required(std::uint32_t tag, const char* what) const {
        const auto value = find(tag);
        if (!value) file_.damaged(std::string("its ") + what + " is missing");
        return number(*value);
    }
    bool big_endian() const { return big_endian_; }

  private:
    std::size_t entry_at(std::size_t i) const { return begin_ + 2 + i * 12; }
    std::uint32_t u16(std::size_t at) const {
        return big_endian_ ? file_.be16(at) : file_.le16(at);
    }
    std::uint32_t u32(std::size_t at) const {
        return big_endian_ ? file_.be32(at) : file_.le32(at);
    }
    /// Bytes a value, 0 for a type that no entry used here may have.
    static std::size_t type_size(std::uint32_t type) {
        switch (type) {
            case 1:
                return 1;  // BYTE
            case 3:
                return 2;  // SHORT
            case 4:
                return 4;  // LONG
            default:
                return 0;
        }
    }

    const FileView& file_;
    bool big_endian_;
    std::size_t begin_ = 0;
    std::size_t entries_ = 0;
};

struct TiffLayout {
    int width = 0, height = 0;
    int orientation = 1;
    std::size_t orientation_at = 0;  // 0: the file says nothing
    std::uint32_t bits = 1, samples = 1;
    bool premultiplied = false;
};

void check_compression(const FileView& file, std::uint32_t compression) {
    // None, CCITT, LZW, JPEG, Deflate, PackBits: what programs write.
    const std::uint32_t known[] = {1, 2, 3, 4, 5, 7, 8, 32773, 32946};
    if (std::find(std::begin(known), std::end(known), compression) == std::end(known))
        file.unsupported("compression " + std::to_string(compression));
}

/// All strips or tiles lie inside the file.
void check_data(const FileView& file, const Directory& directory) {
    const bool tiled = directory.find(kTileWidth).has_value();
    const auto offsets = directory.find(tiled ? kTileOffsets : kStripOffsets);
    const auto sizes = directory.find(tiled ? kTileBytes : kStripBytes);
    if (!offsets || !sizes || offsets->count != sizes->count)
        file.damaged("the list of its pixel data is missing");
    for (std::size_t i = 0; i < offsets->count; ++i)
        file.need(directory.number(*offsets, i), directory.number(*sizes, i));
    if (!tiled) return;
    constexpr std::uint32_t kMostTileSide = 8192;  // usual: 256; a tile is unpacked as a whole
    if (directory.required(kTileWidth, "tile width") > kMostTileSide ||
        directory.required(kTileHeight, "tile height") > kMostTileSide)
        file.unsupported("tiles of more than 8192 pixels");
}

TiffLayout read_layout(const FileView& file) {
    const Directory directory(file);
    TiffLayout layout;
    const std::uint32_t width = directory.required(kWidth, "width");
    const std::uint32_t height = directory.required(kHeight, "height");
    if (width == 0 || height == 0 || width > 0x7FFFFFFF || height > 0x7FFFFFFF) {
        file.damaged("it says it is " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels");
    }
    layout.width = static_cast<int>(width);
    layout.height = static_cast<int>(height);
    layout.samples = directory.number(kSamples, 1);
    if (layout.samples < 1 || layout.samples > 4)
        file.unsupported(std::to_string(layout.samples) + " channels");
    if (const auto bits = directory.find(kBits)) {
        layout.bits = directory.number(*bits);
        for (std::size_t i = 1; i < std::min(bits->count, layout.samples); ++i)
            if (directory.number(*bits, i) != layout.bits)
                file.unsupported("channels of several depths");
    }
    const std::uint32_t b = layout.bits;
    if (b != 1 && b != 2 && b != 4 && b != 8 && b != 16)
        file.unsupported(std::to_string(b) + " bits a channel");
    if (directory.number(kSampleFormat, 1) != 1) file.unsupported("signed or fractional pixels");
    check_compression(file, directory.number(kCompression, 1));
    check_data(file, directory);
    if (const auto orientation = directory.find(kOrientation)) {
        const std::uint32_t value = directory.number(*orientation);
        if (value >= 1 && value <= 8) layout.orientation = static_cast<int>(value);
        layout.orientation_at = orientation->at + (directory.big_endian() ? 1 : 0);
        if (orientation->type != 3) file.damaged("its orientation is malformed");
    }
    // libtiff multiplies 8-bit colours with their alpha; 16-bit ones come as they are stored.
    layout.premultiplied = layout.bits <= 8 || directory.number(kExtraSamples, 0) == 1;
    return layout;
}

}  // namespace

ImageHeader tiff_header(const FileView& file) {
    const TiffLayout layout = read_layout(file);
    return {ImageFormat::kTiff, layout.width, layout.height, layout.orientation};
}

Pixels decode_tiff(const FileView& file, const ImageHeader& header) {
    const TiffLayout layout = read_layout(file);
    std::vector<std::uint8_t> bytes(file.data(), file.data() + file.size());
    // OpenCV would turn TIFF alone, whatever it is asked; the turn is the same for all formats
    // here.
    if (layout.orientation_at != 0) bytes[layout.orientation_at] = 1;
    Pixels out = decode_with_imgcodecs(bytes, header.width, header.height, file);
    out.premultiplied = layout.premultiplied;
    return out;
}

}  // namespace longview::vision

// PNG: chunks are walked and their checksums verified here; stb_image unpacks the pixels.
// Source: W3C PNG specification, second edition.
#include <zlib.h>

#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "vision/image/exif.h"
#include "vision/image/stb.h"

namespace longview::vision {

namespace {

constexpr std::size_t kSignatureSize = 8;
constexpr std::size_t kChunkOverhead = 12;  // length, type, checksum
constexpr std::size_t kHeaderChunk = 13;

enum ColorType : std::uint32_t { kGrey = 0, kRgb = 2, kPalette = 3, kGreyAlpha = 4, kRgba = 6 };

struct PngLayout {
    int width = 0;
    int height = 0;
    std::uint32_t depth = 0;
    std::uint32_t color = 0;
    bool interlaced = false;

    std::size_t samples() const {
        switch (color) {
            case kRgb:
                return 3;
            case kGreyAlpha:
                return 2;
            case kRgba:
                return 4;
            default:
                return 1;
        }
    }
    std::size_t pixels() const {
        return static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    }
    /// Bytes of all rows with their filter bytes; of an interlaced picture at most.
    std::size_t raw_bytes() const {
        const std::size_t rows = static_cast<std::size_t>(height) * (interlaced ? 2 : 1) + 8;
        return (pixels() * samples() * depth + 7) / 8 + 3 * rows;
    }
};

struct Chunk {
    std::size_t at = 0;  // of its first data byte
    std::size_t size = 0;
    std::array<char, 4> type{};

    bool is(std::string_view name) const { return std::string_view(type.data(), 4) == name; }
    bool critical() const { return (type[0] & 0x20) == 0; }
    std::size_t next() const { return at + size + 4; }
    std::string name() const { return {type.data(), 4}; }
};

Chunk read_chunk(const FileView& file, std::size_t at) {
    Chunk chunk;
    chunk.size = file.be32(at);
    chunk.at = at + 8;
    file.need(at, 8);
    std::memcpy(chunk.type.data(), file.data() + at + 4, 4);
    for (const char c : chunk.type) {
        const char lower = static_cast<char>(c | 0x20);
        if (lower < 'a' || lower > 'z')
            file.damaged("there is no block at byte " + std::to_string(at));
    }
    return chunk;
}

PngLayout read_layout(const FileView& file) {
    const Chunk chunk = read_chunk(file, kSignatureSize);
    if (chunk.is("CgBI")) file.unsupported("Apple's own form of PNG");
    if (!chunk.is("IHDR") || chunk.size != kHeaderChunk)
        file.damaged("its first block is not a header");
    const std::uint32_t width = file.be32(chunk.at), height = file.be32(chunk.at + 4);
    if (width == 0 || height == 0 || width > 0x7FFFFFFF || height > 0x7FFFFFFF)
        file.damaged("it says it is " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels");
    PngLayout layout;
    layout.width = static_cast<int>(width);
    layout.height = static_cast<int>(height);
    layout.depth = file.u8(chunk.at + 8);
    layout.color = file.u8(chunk.at + 9);
    layout.interlaced = file.u8(chunk.at + 12) == 1;
    const std::uint32_t d = layout.depth;
    const bool any_depth = d == 8 || d == 16;
    const bool small_depth = d == 1 || d == 2 || d == 4;
    const bool known =
        (layout.color == kGrey && (any_depth || small_depth)) ||
        (layout.color == kPalette && (d == 8 || small_depth)) ||
        ((layout.color == kRgb || layout.color == kGreyAlpha || layout.color == kRgba) &&
         any_depth);
    if (!known) {
        file.damaged("colour type " + std::to_string(layout.color) + " with " + std::to_string(d) +
                     " bits does not exist");
    }
    if (file.u8(chunk.at + 10) != 0 || file.u8(chunk.at + 11) != 0 || file.u8(chunk.at + 12) > 1)
        file.damaged("its header names an unknown compression, filter or interlacing");
    return layout;
}

void check_sum(const FileView& file, const Chunk& chunk) {
    file.need(chunk.at, chunk.size + 4);
    const auto sum =
        static_cast<std::uint32_t>(crc32_z(0, file.data() + chunk.at - 4, chunk.size + 4));
    if (sum != file.be32(chunk.at + chunk.size)) {
        file.damaged("the checksum of its " + chunk.name() + " block at byte " +
                     std::to_string(chunk.at) + " is wrong");
    }
}

/// What stb_image gets: header, palette of 256 entries, transparency and pixel data alone.
class CleanPng {
  public:
    CleanPng(const FileView& file, const PngLayout& layout) : file_(file), layout_(layout) {
        bytes_.reserve(file.size() + 1024);
        bytes_.insert(bytes_.end(), file.data(), file.data() + kSignatureSize);
    }

    /// Returns false at the end of the picture.
    bool take(const Chunk& chunk) {
        if (chunk.is("IHDR")) {
            if (seen_header_) file_.damaged("it has two headers");
            seen_header_ = true;
            add(chunk.type, file_.data() + chunk.at, chunk.size);
        } else if (chunk.is("PLTE")) {
            take_palette(chunk);
        } else if (chunk.is("tRNS")) {
            take_transparency(chunk);
        } else if (chunk.is("IDAT")) {
            take_data(chunk);
        } else if (chunk.is("IEND")) {
            if (data_bytes_ == 0) file_.damaged("it holds no pixels");
            add(chunk.type, nullptr, 0);
            return false;
        } else if (chunk.critical()) {
            file_.unsupported("a " + chunk.name() + " block");
        }
        return true;
    }

    const std::vector<std::uint8_t>& bytes() const { return bytes_; }
    std::size_t data_bytes() const { return data_bytes_; }
    bool transparent() const { return transparent_; }

  private:
    void add(const std::array<char, 4>& type, const std::uint8_t* data, std::size_t size) {
        for (int shift = 24; shift >= 0; shift -= 8)
            bytes_.push_back(static_cast<std::uint8_t>(size >> shift));
        bytes_.insert(bytes_.end(), type.begin(), type.end());
        if (size != 0) bytes_.insert(bytes_.end(), data, data + size);
        bytes_.insert(bytes_.end(), 4, 0);  // checked already; stb_image skips it
    }

    void take_palette(const Chunk& chunk) {
        if (layout_.color != kPalette) return;  // a suggestion for displays of few colours
        if (palette_size_ != 0 || chunk.size == 0 || chunk.size % 3 != 0 || chunk.size > 768)
            file_.damaged("its palette is malformed");
        palette_size_ = chunk.size / 3;
        std::array<std::uint8_t, 768> palette{};  // indices beyond the end are black
        std::memcpy(palette.data(), file_.data() + chunk.at, chunk.size);
        add(chunk.type, palette.data(), palette.size());
    }

    void take_transparency(const Chunk& chunk) {
        if (data_bytes_ != 0 || transparent_) return;
        const std::size_t wanted = layout_.color == kGrey ? 2 : layout_.color == kRgb ? 6 : 0;
        const bool fits = layout_.color == kPalette
                              ? palette_size_ != 0 && chunk.size != 0 && chunk.size <= palette_size_
                              : wanted != 0 && chunk.size == wanted;
        if (!fits) return;  // as libpng: without meaning, without harm
        transparent_ = true;
        add(chunk.type, file_.data() + chunk.at, chunk.size);
    }

    void take_data(const Chunk& chunk) {
        if (layout_.color == kPalette && palette_size_ == 0)
            file_.damaged("its palette is missing");
        data_bytes_ += chunk.size;
        add(chunk.type, file_.data() + chunk.at, chunk.size);
    }

    const FileView& file_;
    const PngLayout& layout_;
    std::vector<std::uint8_t> bytes_;
    std::size_t data_bytes_ = 0;
    std::size_t palette_size_ = 0;
    bool seen_header_ = false;
    bool transparent_ = false;
};

}  // namespace

ImageHeader png_header(const FileView& file) {
    const PngLayout layout = read_layout(file);
    ImageHeader header{ImageFormat::kPng, layout.width, layout.height, 1};
    // The orientation may come after the pixels; a file cut short is reported when it is decoded.
    std::size_t at = kSignatureSize;
    while (file.has(at, kChunkOverhead)) {
        const Chunk chunk = read_chunk(file, at);
        if (chunk.is("IEND") || !file.has(chunk.at, chunk.size)) break;
        if (chunk.is("eXIf")) {
            header.orientation = exif_orientation(file.part(chunk.at, chunk.size));
            break;
        }
        at = chunk.next();
    }
    return header;
}

Pixels decode_png(const FileView& file, const ImageHeader&) {
    const PngLayout layout = read_layout(file);
    CleanPng clean(file, layout);
    std::size_t at = kSignatureSize;
    for (bool more = true; more;) {
        const Chunk chunk = read_chunk(file, at);
        file.need(chunk.at, chunk.size + 4);
        if (chunk.critical() || chunk.is("tRNS")) check_sum(file, chunk);
        more = clean.take(chunk);
        at = chunk.next();
    }
    const std::size_t raw = layout.raw_bytes();
    if (raw > std::size_t{std::numeric_limits<int>::max()})
        file.unsupported("more than 2 GB of pixels");
    constexpr std::size_t kMostDeflateCanShrink = 1032;
    const std::size_t least = layout.pixels() * layout.samples() * layout.depth / 8;
    if (clean.data_bytes() < least / kMostDeflateCanShrink)
        file.damaged("it holds too little data for its size");
    const bool alpha = layout.color == kGreyAlpha || layout.color == kRgba || clean.transparent();
    // Compressed data in a buffer that doubles; rows, of which there may be up to twice as many as
    // needed; then at most three copies of the picture in 8 or 16 bits.
    const std::size_t budget =
        2 * clean.data_bytes() + 2 * raw + 24 * layout.pixels() + (std::size_t{1} << 16);
    return decode_with_stb(clean.bytes(), alpha ? 4 : 3, budget, file);
}

}  // namespace longview::vision

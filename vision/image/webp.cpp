// WebP: the container is read here (size, EXIF, first frame of an animation); the plugin decodes.
// Source: Google, "WebP Container Specification".
#include <array>
#include <cstring>
#include <optional>

#include "vision/image/exif.h"
#include "vision/image/imgcodecs.h"

namespace longview::vision {

namespace {

constexpr std::size_t kFirstChunk = 12;
constexpr std::uint32_t kAlphaFlag = 0x10;

struct Chunk {
    std::size_t tag_at = 0;
    std::size_t at = 0;  // of its data
    std::size_t size = 0;

    bool is(const FileView& file, std::string_view tag) const {
        return file.starts_with(tag_at, tag);
    }
    std::size_t next() const { return at + size + size % 2; }
};

Chunk read_chunk(const FileView& file, std::size_t at) {
    return {at, at + 8, file.le32(at + 4)};
}

struct Size {
    int width = 0, height = 0;
};

/// Of a VP8 or VP8L chunk.
std::optional<Size> bitstream_size(const FileView& file, const Chunk& chunk) {
    if (chunk.is(file, "VP8 ")) {
        if (file.le24(chunk.at + 3) != 0x2A019D) file.damaged("its first frame is not a key frame");
        return Size{static_cast<int>(file.le16(chunk.at + 6) & 0x3FFF),
                    static_cast<int>(file.le16(chunk.at + 8) & 0x3FFF)};
    }
    if (chunk.is(file, "VP8L")) {
        if (file.u8(chunk.at) != 0x2F) file.damaged("its pixels have no signature");
        const std::uint32_t bits = file.le32(chunk.at + 1);
        return Size{static_cast<int>(bits & 0x3FFF) + 1,
                    static_cast<int>((bits >> 14) & 0x3FFF) + 1};
    }
    return std::nullopt;
}

/// An animation's first frame.
struct Frame {
    int left = 0, top = 0, width = 0, height = 0;
    std::size_t begin = 0, end = 0;  // its chunks
};

std::optional<Frame> first_animation_frame(const FileView& file) {
    for (std::size_t at = kFirstChunk; file.has(at, 8);) {
        const Chunk chunk = read_chunk(file, at);
        if (chunk.is(file, "ANMF")) {
            file.need(chunk.at, chunk.size);
            if (chunk.size < 16) file.damaged("a frame is malformed");
            return Frame{static_cast<int>(file.le24(chunk.at)) * 2,
                         static_cast<int>(file.le24(chunk.at + 3)) * 2,
                         static_cast<int>(file.le24(chunk.at + 6)) + 1,
                         static_cast<int>(file.le24(chunk.at + 9)) + 1,
                         chunk.at + 16,
                         chunk.at + chunk.size};
        }
        at = chunk.next();
    }
    return std::nullopt;
}

void put_le(std::vector<std::uint8_t>& out, std::uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

void put_tag(std::vector<std::uint8_t>& out, std::string_view tag) {
    out.insert(out.end(), tag.begin(), tag.end());
}

/// A still picture that holds the frame's chunks.
std::vector<std::uint8_t> as_still(const FileView& file, const Frame& frame) {
    const std::size_t chunks = frame.end - frame.begin;
    std::vector<std::uint8_t> out;
    out.reserve(chunks + 30);
    put_tag(out, "RIFF");
    put_le(out, static_cast<std::uint32_t>(22 + chunks), 4);
    put_tag(out, "WEBPVP8X");
    put_le(out, 10, 4);
    put_le(out, kAlphaFlag, 4);
    put_le(out, static_cast<std::uint32_t>(frame.width - 1), 3);
    put_le(out, static_cast<std::uint32_t>(frame.height - 1), 3);
    out.insert(out.end(), file.data() + frame.begin, file.data() + frame.end);
    return out;
}

Pixels place_on_canvas(const Pixels& frame, int left, int top, const ImageHeader& header) {
    Pixels out{header.width, header.height, 4, false, {}};
    const std::size_t stride = static_cast<std::size_t>(header.width) * 4;
    out.data = allocate_host(stride * static_cast<std::size_t>(header.height));
    std::memset(out.data.data(), 0, out.data.size_bytes());
    const auto* from = frame.data.as<std::uint8_t>();
    for (int y = 0; y < frame.height; ++y) {
        auto* to = out.data.as<std::uint8_t>() + static_cast<std::size_t>(top + y) * stride +
                   static_cast<std::size_t>(left) * 4;
        for (int x = 0; x < frame.width; ++x, from += frame.channels, to += 4) {
            std::memcpy(to, from, 3);
            to[3] = frame.channels == 4 ? from[3] : 255;
        }
    }
    return out;
}

}  // namespace

ImageHeader webp_header(const FileView& file) {
    ImageHeader header{ImageFormat::kWebp, 0, 0, 1};
    const Chunk first = read_chunk(file, kFirstChunk);
    if (const auto size = bitstream_size(file, first)) {
        header.width = size->width;
        header.height = size->height;
    } else if (first.is(file, "VP8X")) {
        header.width = static_cast<int>(file.le24(first.at + 4)) + 1;
        header.height = static_cast<int>(file.le24(first.at + 7)) + 1;
        for (std::size_t at = first.next(); file.has(at, 8);) {
            const Chunk chunk = read_chunk(file, at);
            if (chunk.is(file, "EXIF") && file.has(chunk.at, chunk.size)) {
                header.orientation = exif_orientation(file.part(chunk.at, chunk.size));
                break;
            }
            at = chunk.next();
        }
    } else {
        file.damaged("its first block is unknown");
    }
    if (header.width == 0 || header.height == 0) file.damaged("it is 0 pixels wide or high");
    return header;
}

Pixels decode_webp(const FileView& file, const ImageHeader& header) {
    const std::size_t end = std::size_t{file.le32(4)} + 8;
    if (end > file.size()) file.incomplete();
    const auto frame = first_animation_frame(file);
    if (!frame) {
        const std::vector<std::uint8_t> bytes(file.data(), file.data() + end);
        return decode_with_imgcodecs(bytes, header.width, header.height, file);
    }
    if (frame->left + frame->width > header.width || frame->top + frame->height > header.height)
        file.damaged("its first frame is larger than the picture");
    const Pixels still =
        decode_with_imgcodecs(as_still(file, *frame), frame->width, frame->height, file);
    return place_on_canvas(still, frame->left, frame->top, header);
}

}  // namespace longview::vision

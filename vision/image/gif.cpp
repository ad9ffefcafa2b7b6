// GIF: the first frame on its canvas. Read here in full: stb_image takes truncated data for a
// picture and spends quadratic time on data behind the last pixel. Source: CompuServe, GIF89a
// specification; LZW with codes of at most 12 bits.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "vision/image/formats.h"

namespace longview::vision {

namespace {

constexpr std::size_t kScreenAt = 6;
constexpr std::size_t kFirstTableAt = 13;

struct ColorTable {
    std::size_t at = 0;
    std::size_t entries = 0;
};

struct Frame {
    int left = 0, top = 0, width = 0, height = 0;
    bool interlaced = false;
    ColorTable colors;
    int transparent = -1;
    std::size_t data_at = 0;  // of the minimum code size
};

std::size_t table_entries(std::uint32_t flags) {
    return std::size_t{2} << (flags & 7);
}

/// After a chain of blocks, each led by its size; a size of 0 ends it.
std::size_t skip_blocks(const FileView& file, std::size_t at) {
    while (const std::size_t size = file.u8(at)) at += 1 + size;
    return at + 1;
}

Frame find_first_frame(const FileView& file) {
    Frame frame;
    ColorTable global;
    std::size_t at = kFirstTableAt;
    if (const std::uint32_t flags = file.u8(kScreenAt + 4); (flags & 0x80) != 0) {
        global = {at, table_entries(flags)};
        at += 3 * global.entries;
    }
    while (file.u8(at) == 0x21) {  // extensions
        if (file.u8(at + 1) == 0xF9 && file.u8(at + 2) == 4) {
            const bool transparent = (file.u8(at + 3) & 1) != 0;
            frame.transparent = transparent ? static_cast<int>(file.u8(at + 6)) : -1;
        }
        at = skip_blocks(file, at + 2);
    }
    if (file.u8(at) == 0x3B) file.damaged("it holds no picture");
    if (file.u8(at) != 0x2C) file.damaged("there is no block at byte " + std::to_string(at));
    frame.left = static_cast<int>(file.le16(at + 1));
    frame.top = static_cast<int>(file.le16(at + 3));
    frame.width = static_cast<int>(file.le16(at + 5));
    frame.height = static_cast<int>(file.le16(at + 7));
    const std::uint32_t flags = file.u8(at + 9);
    frame.interlaced = (flags & 0x40) != 0;
    at += 10;
    frame.colors = global;
    if ((flags & 0x80) != 0) {
        frame.colors = {at, table_entries(flags)};
        at += 3 * frame.colors.entries;
    }
    if (frame.colors.entries == 0) file.damaged("it has no colour table");
    file.need(frame.colors.at, 3 * frame.colors.entries);
    frame.data_at = at;
    return frame;
}

/// Codes of a growing number of bits out of the chain of blocks.
class CodeReader {
  public:
    CodeReader(const FileView& file, std::size_t at) : file_(file), at_(at) {}

    std::uint32_t next(int bits) {
        while (have_ < bits) {
            if (left_in_block_ == 0) {
                left_in_block_ = file_.u8(at_++);
                if (left_in_block_ == 0) file_.damaged("its pixels end too early");
            }
            buffer_ |= file_.u8(at_++) << have_;
            --left_in_block_;
            have_ += 8;
        }
        const std::uint32_t code = buffer_ & ((1U << bits) - 1);
        buffer_ >>= bits;
        have_ -= bits;
        return code;
    }

  private:
    const FileView& file_;
    std::size_t at_;
    std::size_t left_in_block_ = 0;
    std::uint32_t buffer_ = 0;
    int have_ = 0;
};

/// Exactly `count` palette indices; what follows them is not looked at.
std::vector<std::uint8_t> unpack(const FileView& file, const Frame& frame, std::size_t count) {
    constexpr std::uint32_t kMostCodes = 4096;
    const auto root_bits = static_cast<int>(file.u8(frame.data_at));
    if (root_bits < 1 || root_bits > 8) file.damaged("its pixels are packed in an unknown way");
    const std::uint32_t clear = 1U << root_bits, end = clear + 1;
    std::array<std::uint16_t, kMostCodes> prefix{};
    std::array<std::uint8_t, kMostCodes> last{}, first{};
    std::array<std::uint16_t, kMostCodes> length{};
    for (std::uint32_t i = 0; i < clear; ++i) {
        last[i] = first[i] = static_cast<std::uint8_t>(i);
        length[i] = 1;
    }
    CodeReader reader(file, frame.data_at + 1);
    std::vector<std::uint8_t> out(count);
    std::size_t written = 0;
    std::uint32_t next = end + 1;
    int bits = root_bits + 1;
    std::int64_t previous = -1;
    while (written < count) {
        const std::uint32_t code = reader.next(bits);
        if (code == clear) {
            next = end + 1;
            bits = root_bits + 1;
            previous = -1;
            continue;
        }
        if (code == end) file.damaged("its pixels end too early");
        if (previous < 0 ? code > end : code > next) file.damaged("its packed pixels are corrupt");
        if (previous >= 0 && next < kMostCodes) {
            const auto p = static_cast<std::size_t>(previous);
            prefix[next] = static_cast<std::uint16_t>(p);
            first[next] = first[p];
            length[next] = static_cast<std::uint16_t>(length[p] + 1);
            last[next] = code == next ? first[p] : first[code];
            ++next;
        }
        // A string is stored backwards: each code knows its last byte and the code before it.
        const std::size_t stop = written + length[code];
        std::uint32_t walk = code;
        for (std::size_t i = stop; i-- > written; walk = prefix[walk])
            if (i < count) out[i] = last[walk];
        written = stop;
        if (next == (1U << bits) && bits < 12) ++bits;
        previous = code;
    }
    return out;
}

/// Rows of an interlaced frame in the order of the file.
std::vector<int> row_order(const Frame& frame) {
    std::vector<int> rows;
    rows.reserve(static_cast<std::size_t>(frame.height));
    const std::array<std::array<int, 2>, 4> passes = {{{0, 8}, {4, 8}, {2, 4}, {1, 2}}};
    if (frame.interlaced) {
        for (const auto& [start, step] : passes)
            for (int y = start; y < frame.height; y += step) rows.push_back(y);
    } else {
        for (int y = 0; y < frame.height; ++y) rows.push_back(y);
    }
    return rows;
}

}  // namespace

ImageHeader gif_header(const FileView& file) {
    ImageHeader header{ImageFormat::kGif, static_cast<int>(file.le16(kScreenAt)),
                       static_cast<int>(file.le16(kScreenAt + 2)), 1};
    if (header.width == 0 || header.height == 0) file.damaged("it is 0 pixels wide or high");
    return header;
}

Pixels decode_gif(const FileView& file, const ImageHeader& header) {
    const Frame frame = find_first_frame(file);
    if (frame.left + frame.width > header.width || frame.top + frame.height > header.height)
        file.damaged("its first frame is larger than the picture");
    const std::size_t count =
        static_cast<std::size_t>(frame.width) * static_cast<std::size_t>(frame.height);
    const std::vector<std::uint8_t> indices = unpack(file, frame, count);

    std::array<std::array<std::uint8_t, 4>, 256> colors{};  // beyond the table: nothing drawn
    for (std::size_t i = 0; i < frame.colors.entries; ++i) {
        const std::uint8_t* const rgb = file.data() + frame.colors.at + 3 * i;
        colors[i] = {rgb[0], rgb[1], rgb[2], 255};
    }
    if (frame.transparent >= 0) colors[static_cast<std::size_t>(frame.transparent)] = {};

    Pixels out{header.width, header.height, 4, false, {}};
    const std::size_t stride = static_cast<std::size_t>(header.width) * 4;
    out.data = allocate_host(stride * static_cast<std::size_t>(header.height));
    std::memset(out.data.data(), 0, out.data.size_bytes());
    const std::uint8_t* index = indices.data();
    for (const int y : row_order(frame)) {
        std::uint8_t* to = out.data.as<std::uint8_t>() +
                           static_cast<std::size_t>(frame.top + y) * stride +
                           static_cast<std::size_t>(frame.left) * 4;
        for (int x = 0; x < frame.width; ++x, to += 4) std::memcpy(to, colors[*index++].data(), 4);
    }
    return out;
}

}  // namespace longview::vision

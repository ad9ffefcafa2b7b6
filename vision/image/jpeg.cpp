// JPEG: segments are walked, checked and rewritten here; stb_image decodes the scans.
// Source: ITU-T T.81 annexes B, F and G; Adobe Technical Note 5116 for the APP14 segment.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "vision/image/exif.h"
#include "vision/image/stb.h"

namespace longview::vision {

namespace {

enum Marker : std::uint32_t {
    kSof0 = 0xC0,
    kSof1 = 0xC1,
    kSof2 = 0xC2,
    kDht = 0xC4,
    kJpg = 0xC8,
    kDac = 0xCC,
    kRst0 = 0xD0,
    kRst7 = 0xD7,
    kSoi = 0xD8,
    kEoi = 0xD9,
    kSos = 0xDA,
    kDqt = 0xDB,
    kDnl = 0xDC,
    kDri = 0xDD,
    kApp0 = 0xE0,
    kApp1 = 0xE1,
    kApp14 = 0xEE,
    kTem = 0x01,
};

// Each scan may visit every block, so a small file of many scans would take minutes. Encoders
// write about ten.
constexpr int kMostScans = 100;

struct Component {
    std::uint32_t id = 0;
    int h = 0, v = 0;
    bool coded = false;  // a scan brought its (first) coefficients
};

struct Frame {
    int width = 0, height = 0;
    bool progressive = false;
    std::vector<Component> components;
    int h_most = 1, v_most = 1;

    std::int64_t mcus_across() const { return (width + 8 * h_most - 1) / (8 * h_most); }
    std::int64_t mcus_down() const { return (height + 8 * v_most - 1) / (8 * v_most); }
    /// Blocks that hold pixels, as a scan of this component alone codes them.
    std::int64_t blocks_alone(const Component& c) const {
        const int across = (width * c.h + h_most - 1) / h_most;
        const int down = (height * c.v + v_most - 1) / v_most;
        return std::int64_t{(across + 7) / 8} * ((down + 7) / 8);
    }
};

struct Segment {
    std::uint32_t marker = 0;
    std::size_t at = 0;    // of the byte after its length
    std::size_t size = 0;  // without the length
};

bool is_frame(std::uint32_t marker) {
    return marker >= 0xC0 && marker <= 0xCF && marker != kDht && marker != kJpg && marker != kDac;
}

bool stands_alone(std::uint32_t marker) {
    return (marker >= kRst0 && marker <= kEoi) || marker == kTem;
}

/// The segment at or after `at`; decoders pass over bytes that do not belong to one.
Segment next_segment(const FileView& file, std::size_t at) {
    while (true) {
        while (file.u8(at) != 0xFF) ++at;
        while (file.u8(at) == 0xFF) ++at;
        const std::uint32_t marker = file.u8(at++);
        if (marker == 0) continue;
        if (stands_alone(marker)) return {marker, at, 0};
        const std::size_t length = file.be16(at);
        if (length < 2) file.damaged("a segment has no length");
        file.need(at, length);
        return {marker, at + 2, length - 2};
    }
}

Frame read_frame(const FileView& file, const Segment& segment) {
    if (segment.marker != kSof0 && segment.marker != kSof1 && segment.marker != kSof2) {
        file.unsupported(segment.marker == 0xC3   ? "lossless compression"
                         : segment.marker >= 0xC9 ? "arithmetic coding"
                                                  : "hierarchical compression");
    }
    const std::uint32_t bits = file.u8(segment.at);
    if (bits != 8) file.unsupported(std::to_string(bits) + " bits a sample");
    Frame frame;
    frame.progressive = segment.marker == kSof2;
    frame.height = static_cast<int>(file.be16(segment.at + 1));
    frame.width = static_cast<int>(file.be16(segment.at + 3));
    if (frame.height == 0) file.unsupported("a height that follows the pixels");
    if (frame.width == 0) file.damaged("it is 0 pixels wide");
    const std::size_t count = file.u8(segment.at + 5);
    if (segment.size != 6 + 3 * count) file.damaged("its frame header is malformed");
    if (count != 1 && count != 3 && count != 4)
        file.unsupported(std::to_string(count) + " colour components");
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t at = segment.at + 6 + 3 * i;
        const std::uint32_t factors = file.u8(at + 1);
        Component c{file.u8(at), static_cast<int>(factors >> 4), static_cast<int>(factors & 15)};
        if (c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4 || file.u8(at + 2) > 3)
            file.damaged("its frame header is malformed");
        for (const Component& other : frame.components)
            if (other.id == c.id) file.damaged("two colour components have one name");
        frame.h_most = std::max(frame.h_most, c.h);
        frame.v_most = std::max(frame.v_most, c.v);
        frame.components.push_back(c);
    }
    for (const Component& c : frame.components)
        if (frame.h_most % c.h != 0 || frame.v_most % c.v != 0)
            file.unsupported("an uneven subsampling of colours");
    return frame;
}

void check_huffman_tables(const FileView& file, const Segment& segment) {
    std::size_t at = segment.at;
    const std::size_t end = segment.at + segment.size;
    while (at < end) {
        const std::uint32_t which = file.u8(at);
        if (which >> 4 > 1 || (which & 15) > 3 || end - at < 17)
            file.damaged("a Huffman table is malformed");
        std::size_t symbols = 0;
        std::uint32_t codes = 0;  // used so far of this length
        for (std::size_t length = 1; length <= 16; ++length) {
            const std::uint32_t count = file.u8(at + length);
            symbols += count;
            codes = 2 * codes + count;
            if (codes > (1U << length)) file.damaged("a Huffman table is malformed");
        }
        at += 17;
        if (symbols > 256 || symbols > end - at) file.damaged("a Huffman table is malformed");
        at += symbols;
    }
}

void check_quantisation_tables(const FileView& file, const Segment& segment) {
    std::size_t at = segment.at;
    const std::size_t end = segment.at + segment.size;
    while (at < end) {
        const std::uint32_t which = file.u8(at);
        const std::size_t size = which >> 4 == 0 ? 65 : 129;
        if (which >> 4 > 1 || (which & 15) > 3 || end - at < size)
            file.damaged("a quantisation table is malformed");
        at += size;
    }
}

/// Collects the checked segments that decoding needs.
class CleanJpeg {
  public:
    explicit CleanJpeg(const FileView& file) : file_(file) {
        bytes_.reserve(file.size() + 64);
        add_marker(kSoi);
        for (std::size_t at = 2; !done_;) at = take(next_segment(file, at));
    }

    const std::vector<std::uint8_t>& bytes() const { return bytes_; }

    /// Planes (padded to whole MCUs) with coefficients of progressive frames, lines, output.
    std::size_t budget_bytes() const {
        const auto mcus = static_cast<std::size_t>(frame_.mcus_across() * frame_.mcus_down());
        std::size_t planes = 0;
        for (const Component& c : frame_.components)
            planes += mcus * 64 * static_cast<std::size_t>(c.h) * static_cast<std::size_t>(c.v);
        const auto width = static_cast<std::size_t>(frame_.width);
        return planes * (frame_.progressive ? 3 : 1) +
               3 * width * static_cast<std::size_t>(frame_.height) + 8 * width +
               (std::size_t{1} << 17);
    }

  private:
    void add_marker(std::uint32_t marker) {
        bytes_.push_back(0xFF);
        bytes_.push_back(static_cast<std::uint8_t>(marker));
    }
    void add_file(std::size_t at, std::size_t size) {
        bytes_.insert(bytes_.end(), file_.data() + at, file_.data() + at + size);
    }
    void add(const Segment& segment) {
        add_marker(segment.marker);
        add_file(segment.at - 2, segment.size + 2);
    }

    /// Returns where the next segment is looked for.
    std::size_t take(const Segment& segment) {
        const std::size_t next = segment.at + segment.size;
        if (is_frame(segment.marker)) {
            if (have_frame_) file_.damaged("it has two frames");
            frame_ = read_frame(file_, segment);
            have_frame_ = true;
            add_adobe();
            add(segment);
            return next;
        }
        switch (segment.marker) {
            case kSoi:
                file_.damaged("a second picture begins inside it");
            case kEoi:
                finish();
                break;
            case kDht:
                check_huffman_tables(file_, segment), add(segment);
                break;
            case kDqt:
                check_quantisation_tables(file_, segment), add(segment);
                break;
            case kDri:
                if (segment.size != 2) file_.damaged("its restart interval is malformed");
                restart_interval_ = file_.be16(segment.at);
                add(segment);
                break;
            case kSos:
                return take_scan(segment);
            case kApp0:
                if (!have_frame_ && file_.starts_with(segment.at, std::string_view("JFIF\0", 5)))
                    add(segment);
                break;
            case kApp14:
                if (segment.size >= 12 && file_.starts_with(segment.at, "Adobe"))
                    adobe_transform_ = static_cast<int>(file_.u8(segment.at + 11));
                break;
            default:
                break;
        }
        return next;
    }

    /// CMYK pictures are stored inverted, with or without Adobe's segment saying so; a transform
    /// other than none is YCCK, as in libjpeg and Pillow.
    void add_adobe() {
        const bool four = frame_.components.size() == 4;
        if (adobe_transform_ < 0 && !four) return;
        const int transform = four ? (adobe_transform_ <= 0 ? 0 : 2) : adobe_transform_;
        add_marker(kApp14);
        const std::array<std::uint8_t, 14> segment = {
            0, 14,  'A', 'd', 'o', 'b', 'e',
            0, 100, 0,   0,   0,   0,   static_cast<std::uint8_t>(transform)};
        bytes_.insert(bytes_.end(), segment.begin(), segment.end());
    }

    struct Scan {
        std::int64_t units = 0;  // between restart markers are counted in these
        std::int64_t blocks = 0;
        bool first = false;  // brings coefficients that were not there
        bool dc = false;
    };

    Scan read_scan(const Segment& segment) {
        if (!have_frame_) file_.damaged("pixels come before its frame header");
        if (++scans_ > kMostScans)
            file_.damaged("it has more than " + std::to_string(kMostScans) + " scans");
        const std::size_t count = file_.u8(segment.at);
        if (count < 1 || count > frame_.components.size() || segment.size != 4 + 2 * count)
            file_.damaged("a scan header is malformed");
        Scan scan;
        const std::size_t spectrum = segment.at + 1 + 2 * count;
        scan.dc = !frame_.progressive || file_.u8(spectrum) == 0;
        scan.first = scan.dc && (!frame_.progressive || file_.u8(spectrum + 2) >> 4 == 0);
        for (std::size_t i = 0; i < count; ++i) {
            Component& c = component(file_.u8(segment.at + 1 + 2 * i));
            scan.blocks += count == 1 ? frame_.blocks_alone(c)
                                      : frame_.mcus_across() * frame_.mcus_down() * c.h * c.v;
            if (scan.first) {
                if (c.coded) file_.damaged("a colour component is coded twice");
                c.coded = true;
            }
        }
        scan.units = count == 1 ? scan.blocks : frame_.mcus_across() * frame_.mcus_down();
        return scan;
    }

    Component& component(std::uint32_t id) {
        for (Component& c : frame_.components)
            if (c.id == id) return c;
        file_.damaged("a scan names a colour component that does not exist");
    }

    std::size_t take_scan(const Segment& segment) {
        const Scan scan = read_scan(segment);
        add(segment);
        const std::size_t begin = segment.at + segment.size;
        std::size_t at = begin;
        std::int64_t restarts = 0;
        while (true) {
            const void* const found = std::memchr(file_.data() + at, 0xFF, file_.size() - at);
            if (found == nullptr) file_.incomplete();
            at = static_cast<std::size_t>(static_cast<const std::uint8_t*>(found) - file_.data());
            const std::uint32_t marker = file_.u8(at + 1);
            if (marker >= kRst0 && marker <= kRst7) {
                ++restarts;
            } else if (marker != 0 && marker != 0xFF) {
                break;
            }
            at += marker == 0xFF ? 1 : 2;
        }
        add_file(begin, at - begin);
        check_amount(scan, static_cast<std::int64_t>(at - begin), restarts);
        return at;
    }

    /// Missing data would come out as grey. A block has at least one bit for its DC coefficient,
    /// and in a sequential frame one for its end.
    void check_amount(const Scan& scan, std::int64_t bytes, std::int64_t restarts) const {
        const std::int64_t bits_a_block = scan.dc ? (frame_.progressive ? 1 : 2) : 0;
        const bool short_of_bits = bytes * 8 < scan.blocks * bits_a_block;
        const std::int64_t intervals =
            restart_interval_ == 0 ? 1 : (scan.units + restart_interval_ - 1) / restart_interval_;
        if (short_of_bits || restarts < intervals - 1)
            file_.damaged("a part of its pixels is missing");
    }

    void finish() {
        for (const Component& c : frame_.components)
            if (!c.coded) file_.damaged("a part of its pixels is missing");
        if (!have_frame_) file_.damaged("it holds no picture");
        add_marker(kEoi);
        done_ = true;
    }

    const FileView& file_;
    std::vector<std::uint8_t> bytes_;
    Frame frame_;
    bool have_frame_ = false;
    bool done_ = false;
    int adobe_transform_ = -1;
    std::int64_t restart_interval_ = 0;
    int scans_ = 0;
};

}  // namespace

ImageHeader jpeg_header(const FileView& file) {
    ImageHeader header{ImageFormat::kJpeg, 0, 0, 1};
    std::size_t at = 2;
    while (true) {
        const Segment segment = next_segment(file, at);
        at = segment.at + segment.size;
        if (is_frame(segment.marker)) {
            const Frame frame = read_frame(file, segment);
            header.width = frame.width;
            header.height = frame.height;
            return header;
        }
        if (segment.marker == kSos || segment.marker == kEoi)
            file.damaged("it has no frame header");
        if (segment.marker == kApp1 &&
            file.starts_with(segment.at, std::string_view("Exif\0", 5)) && header.orientation == 1)
            header.orientation = exif_orientation(file.part(segment.at, segment.size));
    }
}

Pixels decode_jpeg(const FileView& file, const ImageHeader&) {
    const CleanJpeg clean(file);
    return decode_with_stb(clean.bytes(), 3, clean.budget_bytes(), file);
}

}  // namespace longview::vision

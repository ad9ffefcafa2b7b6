// From a file to an upright RGB picture: sniff, limits, decode, alpha, EXIF turn.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <opencv2/core.hpp>
#include <optional>
#include <string>

#include "vision/image/formats.h"

namespace longview::vision {

namespace {

constexpr std::size_t kMostFileBytes = std::size_t{512} << 20;

struct Format {
    ImageFormat format;
    const char* name;
    ImageHeader (*header)(const FileView&);
    Pixels (*decode)(const FileView&, const ImageHeader&);
};

constexpr Format kFormats[] = {
    {ImageFormat::kPng, "PNG", png_header, decode_png},
    {ImageFormat::kJpeg, "JPEG", jpeg_header, decode_jpeg},
    {ImageFormat::kBmp, "BMP", bmp_header, decode_bmp},
    {ImageFormat::kGif, "GIF", gif_header, decode_gif},
    {ImageFormat::kWebp, "WebP", webp_header, decode_webp},
    {ImageFormat::kTiff, "TIFF", tiff_header, decode_tiff},
};

using namespace std::string_view_literals;

ImageFormat sniff(const FileView& file) {
    if (file.starts_with(0, "\x89PNG\r\n\x1A\n"sv)) return ImageFormat::kPng;
    if (file.starts_with(0, "\xFF\xD8\xFF"sv)) return ImageFormat::kJpeg;
    if (file.starts_with(0, "GIF87a"sv) || file.starts_with(0, "GIF89a"sv))
        return ImageFormat::kGif;
    if (file.starts_with(0, "RIFF"sv) && file.starts_with(8, "WEBP"sv)) return ImageFormat::kWebp;
    if (file.starts_with(0, "II*\0"sv) || file.starts_with(0, "MM\0*"sv)) return ImageFormat::kTiff;
    if (file.starts_with(0, "BM"sv)) return ImageFormat::kBmp;
    return ImageFormat::kUnknown;
}

/// What else people drop onto a chat; null when unknown.
const char* name_other_format(const FileView& file) {
    struct Magic {
        std::size_t at;
        std::string_view bytes;
        const char* name;
    };
    static constexpr Magic kMagics[] = {
        {0, "%PDF"sv, "a PDF document; add it as a document"},
        {4, "ftypheic"sv, "a HEIC picture; save it as JPEG or PNG"},
        {4, "ftypheix"sv, "a HEIC picture; save it as JPEG or PNG"},
        {4, "ftyphevc"sv, "a HEIC picture; save it as JPEG or PNG"},
        {4, "ftypmif1"sv, "a HEIF picture; save it as JPEG or PNG"},
        {4, "ftypmsf1"sv, "a HEIF picture; save it as JPEG or PNG"},
        {4, "ftypavif"sv, "an AVIF picture; save it as JPEG or PNG"},
        {4, "ftypavis"sv, "an AVIF picture; save it as JPEG or PNG"},
        {4, "ftyp"sv, "a video; save one of its frames as PNG"},
        {0, "\0\0\0\x0CjP  "sv, "a JPEG 2000 picture; save it as JPEG or PNG"},
        {0, "\xFF\x4F\xFF\x51"sv, "a JPEG 2000 picture; save it as JPEG or PNG"},
        {0, "\0\0\0\x0CJXL "sv, "a JPEG XL picture; save it as JPEG or PNG"},
        {0, "\xFF\x0A"sv, "a JPEG XL picture; save it as JPEG or PNG"},
        {0, "II+\0"sv, "a BigTIFF picture; save it as TIFF or PNG"},
        {0, "MM\0+"sv, "a BigTIFF picture; save it as TIFF or PNG"},
        {0, "\0\0\1\0"sv, "an icon file; save it as PNG"},
        {0, "8BPS"sv, "a Photoshop file; save it as PNG"},
        {0, "\x76\x2F\x31\x01"sv, "an OpenEXR picture; save it as PNG"},
        {0, "qoif"sv, "a QOI picture; save it as PNG"},
        {0, "\x1F\x8B"sv, "a gzip archive; unpack it first"},
        {0, "PK\x03\x04"sv, "a ZIP archive or office document, not a picture"},
    };
    for (const Magic& magic : kMagics)
        if (file.starts_with(magic.at, magic.bytes)) return magic.name;
    const std::string_view text(reinterpret_cast<const char*>(file.data()),
                                std::min<std::size_t>(file.size(), 1024));
    const std::size_t start = text.find_first_not_of("\xEF\xBB\xBF \t\r\n"sv);
    if (start != std::string_view::npos && text[start] == '<' &&
        text.find("<svg"sv) != std::string_view::npos)
        return "an SVG drawing; save it as PNG";
    return nullptr;
}

const Format& find_format(const FileView& file) {
    constexpr std::size_t kLongestMagic = 12;
    const ImageFormat format = sniff(file);
    for (const Format& candidate : kFormats)
        if (candidate.format == format) return candidate;
    const std::string name(file.name());
    if (file.size() == 0)
        throw Error(Category::kInput, name + " is empty; copy or download it again");
    if (const char* const other = name_other_format(file))
        throw Error(Category::kUnsupported, name + " cannot be read as a picture: it is " + other);
    if (file.size() < kLongestMagic) {
        throw Error(Category::kInput,
                    name + " has only " + std::to_string(file.size()) +
                        " bytes, too few for a picture; copy or download it again");
    }
    throw Error(Category::kUnsupported,
                name + " is not a picture that can be read (PNG, JPEG, BMP, GIF, WebP or TIFF)");
}

std::string thousands(std::int64_t n) {
    std::string digits = std::to_string(n);
    for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3)
        digits.insert(static_cast<std::size_t>(i), ",");
    return digits;
}

void check_limits(const ImageHeader& header, std::string_view name, const DecodeOptions& options) {
    const std::int64_t longer = std::max(header.width, header.height);
    const std::int64_t shorter = std::min(header.width, header.height);
    const std::int64_t pixels = longer * shorter;
    std::string limit;
    if (longer > options.max_side) {
        limit = "the limit is " + thousands(options.max_side) + " pixels on a side";
    } else if (pixels > options.max_pixels) {
        limit = "that is " + thousands(pixels) + " pixels in all; the limit is " +
                thousands(options.max_pixels);
    } else if (longer > shorter * options.max_aspect) {
        limit =
            "one side may be at most " + std::to_string(options.max_aspect) + " times the other";
    } else {
        return;
    }
    throw Error(
        Category::kInput,
        std::string(name) + " is " + thousands(header.width) + " x " + thousands(header.height) +
            " pixels; " + limit + ". It was not opened; make it smaller or crop it",
        {{"width", std::to_string(header.width)}, {"height", std::to_string(header.height)}});
}

/// c * a + background * (255 - a), rounded, in 255ths.
std::uint8_t blend(std::uint32_t color, std::uint32_t alpha, std::uint32_t background) {
    return static_cast<std::uint8_t>((color * alpha + background * (255 - alpha) + 127) / 255);
}

std::uint8_t add_background(std::uint32_t color, std::uint32_t alpha, std::uint32_t background) {
    return static_cast<std::uint8_t>(
        std::min(255U, color + (background * (255 - alpha) + 127) / 255));
}

Image to_rgb(const Pixels& pixels, AlphaBackground background) {
    Image image{pixels.width, pixels.height, {}};
    const std::size_t count =
        static_cast<std::size_t>(pixels.width) * static_cast<std::size_t>(pixels.height);
    const auto* from = pixels.data.as<std::uint8_t>();
    if (pixels.channels == 3) {
        image.rgb.assign(from, from + 3 * count);
        return image;
    }
    image.rgb.resize(3 * count);
    const std::uint32_t behind = background == AlphaBackground::kWhite ? 255 : 0;
    std::uint8_t* to = image.rgb.data();
    for (std::size_t i = 0; i < count; ++i, from += 4, to += 3) {
        for (int c = 0; c < 3; ++c)
            to[c] = pixels.premultiplied ? add_background(from[c], from[3], behind)
                                         : blend(from[c], from[3], behind);
    }
    return image;
}

/// Turns the picture as its EXIF orientation says: 2 mirrored, 3 half a turn, 4 upside down
/// mirrored, 5 and 7 over a diagonal, 6 and 8 a quarter turn.
Image make_upright(Image image, int orientation) {
    if (orientation <= 1 || orientation > 8) return image;
    const bool swapped = orientation >= 5;
    Image out{swapped ? image.height : image.width, swapped ? image.width : image.height, {}};
    out.rgb.resize(image.rgb.size());
    const cv::Mat from(image.height, image.width, CV_8UC3, image.rgb.data());
    cv::Mat to(out.height, out.width, CV_8UC3, out.rgb.data());
    switch (orientation) {
        case 2:
            cv::flip(from, to, 1);
            break;
        case 3:
            cv::rotate(from, to, cv::ROTATE_180);
            break;
        case 4:
            cv::flip(from, to, 0);
            break;
        case 5:
            cv::transpose(from, to);
            break;
        case 6:
            cv::rotate(from, to, cv::ROTATE_90_CLOCKWISE);
            break;
        case 7:
            cv::transpose(from, to);
            cv::flip(to, to, -1);
            break;
        default:
            cv::rotate(from, to, cv::ROTATE_90_COUNTERCLOCKWISE);
            break;
    }
    LONGVIEW_CHECK(to.data == out.rgb.data(), "OpenCV writes into the picture it was given");
    return out;
}

[[noreturn]] void throw_io(const std::string& name, const char* what, int error) {
    throw Error(error == ENOENT || error == ENOTDIR ? Category::kNotFound : Category::kIo,
                name + " cannot be " + what + ": " + std::strerror(error));
}

class OpenFile {
  public:
    explicit OpenFile(const std::string& name)
        : name_(name), fd_(open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
        if (fd_ < 0) throw_io(name_, "opened", errno);
    }
    ~OpenFile() { close(fd_); }
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    std::vector<std::byte> read_all() const {
        struct stat info {};
        if (fstat(fd_, &info) != 0) throw_io(name_, "examined", errno);
        if (!S_ISREG(info.st_mode))
            throw Error(Category::kInput, name_ + " is not a file; choose a picture file");
        if (info.st_size > static_cast<off_t>(kMostFileBytes)) {
            throw Error(Category::kInput, name_ + " has " + thousands(info.st_size) +
                                              " bytes; picture files may have at most " +
                                              thousands(std::int64_t{kMostFileBytes}));
        }
        std::vector<std::byte> bytes(static_cast<std::size_t>(info.st_size));
        std::size_t done = 0;
        while (done < bytes.size()) {
            const ssize_t n = read(fd_, bytes.data() + done, bytes.size() - done);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) throw_io(name_, "read", errno);
            if (n == 0) break;  // it became shorter meanwhile; the format reader will say so
            done += static_cast<std::size_t>(n);
        }
        bytes.resize(done);
        return bytes;
    }

  private:
    const std::string& name_;
    int fd_;
};

}  // namespace

ImageHeader read_image_header(std::span<const std::byte> file, std::string_view name) {
    const Format& format = find_format(FileView(file, name, "unknown"));
    return format.header(FileView(file, name, format.name));
}

Image decode_image(std::span<const std::byte> file, std::string_view name,
                   const DecodeOptions& options) {
    if (file.size() > kMostFileBytes) {
        throw Error(Category::kInput, std::string(name) + " has " +
                                          thousands(static_cast<std::int64_t>(file.size())) +
                                          " bytes; picture files may have at most " +
                                          thousands(std::int64_t{kMostFileBytes}));
    }
    const Format& format = find_format(FileView(file, name, "unknown"));
    const FileView view(file, name, format.name);
    const ImageHeader header = format.header(view);
    check_limits(header, name, options);
    const Pixels pixels = format.decode(view, header);
    if (pixels.width != header.width || pixels.height != header.height)
        view.damaged("its pixels have another size than its header says");
    return make_upright(to_rgb(pixels, options.background), header.orientation);
}

Image load_image(const std::filesystem::path& path, const DecodeOptions& options) {
    const std::string name = path.string();
    const std::vector<std::byte> bytes = OpenFile(name).read_all();
    return decode_image(bytes, name, options);
}

}  // namespace longview::vision

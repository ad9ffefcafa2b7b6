// Pillow's separable bicubic resampling, bit for bit: fixed-point weights of 22 fractional bits,
// a horizontal pass into 8-bit pixels, then a vertical one (model-spec 7.4).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/runtime/error.h"
#include "vision/image/tiling.h"

// The loops multiply 32-bit integers, which plain x86-64 has no vector instruction for. Where the
// compiler can choose at load time, an AVX2 copy runs (4000x3000 to 672x504: a quarter of the
// time). Sanitizers run before such a choice is possible.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(LONGVIEW_NO_CLONES)
#define LONGVIEW_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define LONGVIEW_CLONES
#endif

namespace longview::vision {

namespace {

constexpr int kFractionBits = 22;  // 32 less 8 of the pixel and 2 for overshoot and sign
constexpr double kSupport = 2.0;   // of the bicubic kernel at scale 1
constexpr int kChannels = 3;

/// The inputs that make up each output along one axis, and their weights.
struct Taps {
    int most = 0;                       // taps of an output at most
    std::vector<std::int32_t> weights;  // [outputs, most], kFractionBits
    std::vector<int> first;             // [outputs] first input
    std::vector<int> count;             // [outputs] inputs used
};

double bicubic(double t) {
    constexpr double a = -0.5;
    t = std::abs(t);
    if (t < 1.0) return ((a + 2.0) * t - (a + 3.0)) * t * t + 1;
    if (t < 2.0) return (((t - 5) * t + 8) * t - 4) * a;
    return 0.0;
}

// Every operation is in the order of the reference: another order rounds some weights otherwise.
Taps make_taps(int in_size, int out_size) {
    const double scale = static_cast<double>(in_size) / out_size;
    const double stretch = std::max(scale, 1.0);
    const double support = kSupport * stretch;
    const double inverse = 1.0 / stretch;
    Taps taps;
    taps.most = static_cast<int>(std::ceil(support)) * 2 + 1;
    const auto outputs = static_cast<std::size_t>(out_size);
    taps.weights.assign(outputs * static_cast<std::size_t>(taps.most), 0);
    taps.first.resize(outputs);
    taps.count.resize(outputs);
    std::vector<double> raw(static_cast<std::size_t>(taps.most));
    for (std::size_t i = 0; i < outputs; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(center - support + 0.5));
        const int end = std::min(in_size, static_cast<int>(center + support + 0.5));
        double sum = 0.0;
        for (int j = first; j < end; ++j) {
            const double weight = bicubic((j - center + 0.5) * inverse);
            raw[static_cast<std::size_t>(j - first)] = weight;
            sum += weight;
        }
        std::int32_t* const row = &taps.weights[i * static_cast<std::size_t>(taps.most)];
        for (int j = 0; j < end - first; ++j) {
            double weight = raw[static_cast<std::size_t>(j)];
            if (sum != 0.0) weight /= sum;
            const double scaled = weight * (1 << kFractionBits);
            row[j] = static_cast<std::int32_t>(weight < 0 ? scaled - 0.5 : scaled + 0.5);
        }
        taps.first[i] = first;
        taps.count[i] = end - first;
    }
    return taps;
}

// Four lanes: red, green, blue and the byte after them, whose result is dropped.
using Int4 = std::int32_t __attribute__((vector_size(16)));
using Byte4 = std::uint8_t __attribute__((vector_size(4)));

inline Int4 load_pixel(const std::uint8_t* p) {
    Byte4 bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, Int4);
}

inline void store_pixel(std::uint8_t* p, Int4 sum) {
    Int4 v = sum >> kFractionBits;
    v &= ~(v >> 31);            // negative: 0
    const Int4 over = 255 - v;  // negative where too large
    v += over & (over >> 31);
    const Byte4 bytes = __builtin_convertvector(v, Byte4);
    std::memcpy(p, &bytes, kChannels);
}

/// kRows rows of `width` pixels to `taps.first.size()` pixels; each weight is loaded once for all
/// rows. One byte after each input row is read.
constexpr int kRows = 4;
LONGVIEW_CLONES
void resize_rows(const std::uint8_t* const in[kRows], const Taps& taps,
                 std::uint8_t* const out[kRows]) {
    constexpr std::int32_t half = 1 << (kFractionBits - 1);
    const std::size_t outputs = taps.first.size();
    for (std::size_t x = 0; x < outputs; ++x) {
        const std::int32_t* const weights = &taps.weights[x * static_cast<std::size_t>(taps.most)];
        const std::ptrdiff_t start = std::ptrdiff_t{taps.first[x]} * kChannels;
        const int count = taps.count[x];
        const std::uint8_t *p0 = in[0] + start, *p1 = in[1] + start, *p2 = in[2] + start,
                           *p3 = in[3] + start;
        Int4 s0 = {half, half, half, half}, s1 = s0, s2 = s0, s3 = s0;
        for (int k = 0; k < count; ++k) {
            const Int4 weight = {weights[k], weights[k], weights[k], weights[k]};
            s0 += load_pixel(p0) * weight;
            s1 += load_pixel(p1) * weight;
            s2 += load_pixel(p2) * weight;
            s3 += load_pixel(p3) * weight;
            p0 += kChannels, p1 += kChannels, p2 += kChannels, p3 += kChannels;
        }
        store_pixel(out[0] + x * kChannels, s0);
        store_pixel(out[1] + x * kChannels, s1);
        store_pixel(out[2] + x * kChannels, s2);
        store_pixel(out[3] + x * kChannels, s3);
    }
}

/// One output row from `count` input rows of `bytes` bytes, `stride` apart.
LONGVIEW_CLONES
void blend_rows(const std::uint8_t* in, std::size_t stride, const std::int32_t* weights, int count,
                std::uint8_t* out, std::size_t bytes) {
    constexpr std::size_t kBlock = 512;  // sums stay in the first-level cache
    std::int32_t sums[kBlock];
    for (std::size_t begin = 0; begin < bytes; begin += kBlock) {
        const std::size_t n = std::min(kBlock, bytes - begin);
        std::fill_n(sums, n, 1 << (kFractionBits - 1));
        for (int k = 0; k < count; ++k) {
            const std::uint8_t* const row = in + static_cast<std::size_t>(k) * stride + begin;
            const std::int32_t weight = weights[k];
            for (std::size_t i = 0; i < n; ++i) sums[i] += weight * row[i];
        }
        for (std::size_t i = 0; i < n; ++i)
            out[begin + i] =
                static_cast<std::uint8_t>(std::clamp(sums[i] >> kFractionBits, 0, 255));
    }
}

std::size_t row_bytes(int width) {
    return static_cast<std::size_t>(width) * kChannels;
}

/// The input rows [first, end) resized to `width`.
Image resize_width(const Image& image, int width, int first, int end) {
    const Taps taps = make_taps(image.width, width);
    Image out{width, end - first, {}};
    out.rgb.resize(row_bytes(width) * static_cast<std::size_t>(out.height));
    const std::size_t stride = row_bytes(image.width);
    // The last row of the picture has no byte after it.
    std::vector<std::uint8_t> last(stride + 1);
    std::memcpy(last.data(), image.rgb.data() + image.rgb.size() - stride, stride);
    std::vector<std::uint8_t> spare(row_bytes(width));
    for (int y = first; y < end; y += kRows) {
        const std::uint8_t* in[kRows];
        std::uint8_t* to[kRows];
        for (int i = 0; i < kRows; ++i) {
            const auto row = static_cast<std::size_t>(std::min(y + i, end - 1));
            in[i] = row + 1 == static_cast<std::size_t>(image.height)
                        ? last.data()
                        : image.rgb.data() + row * stride;
            to[i] = y + i < end ? out.rgb.data() +
                                      static_cast<std::size_t>(y + i - first) * row_bytes(width)
                                : spare.data();
        }
        resize_rows(in, taps, to);
    }
    return out;
}

}  // namespace

Image resize_bicubic(const Image& image, Size size) {
    LONGVIEW_CHECK(size.width > 0 && size.height > 0, "a picture is resized to at least one pixel");
    LONGVIEW_CHECK(
        image.width > 0 && image.height > 0 &&
            image.rgb.size() == row_bytes(image.width) * static_cast<std::size_t>(image.height),
        "a picture has as many bytes as its size says");
    const bool across = size.width != image.width;
    if (size.height == image.height)
        return across ? resize_width(image, size.width, 0, image.height) : image;

    const Taps taps = make_taps(image.height, size.height);
    const int first = taps.first.front();
    const int end = taps.first.back() + taps.count.back();
    Image narrowed;
    if (across) narrowed = resize_width(image, size.width, first, end);
    const std::size_t stride = row_bytes(size.width);
    const std::uint8_t* const rows =
        across ? narrowed.rgb.data() : image.rgb.data() + static_cast<std::size_t>(first) * stride;

    Image out{size.width, size.height, {}};
    out.rgb.resize(stride * static_cast<std::size_t>(size.height));
    for (std::size_t y = 0; y < static_cast<std::size_t>(size.height); ++y) {
        blend_rows(rows + static_cast<std::size_t>(taps.first[y] - first) * stride, stride,
                   &taps.weights[y * static_cast<std::size_t>(taps.most)], taps.count[y],
                   out.rgb.data() + y * stride, stride);
    }
    return out;
}

}  // namespace longview::vision

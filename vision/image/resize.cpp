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

// The horizontal pass works on eight rows side by side: neighbours in a row have different weights,
// but the pixels of one column have the same.
constexpr int kRows = 8;
constexpr std::size_t kGroup = 16;  // bytes of each row that change places at once
using Bytes16 = std::uint8_t __attribute__((vector_size(16)));
using Int8 = std::int32_t __attribute__((vector_size(32)));

/// Interleaves the first and second half of 128 bytes, as when shuffling cards: bit b of a byte's
/// index becomes bit b + 1. Index [row][position] is [position][row] after three rounds, and the
/// other way about after four.
inline void riffle(Bytes16 (&v)[kRows], int rounds) {
    for (int round = 0; round < rounds; ++round) {
        Bytes16 out[kRows];
        for (int i = 0; i < kRows / 2; ++i) {
            const Bytes16 a = v[i], b = v[i + kRows / 2];
            out[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                                 22, 7, 23);
            out[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                     29, 14, 30, 15, 31);
        }
        for (int i = 0; i < kRows; ++i) v[i] = out[i];
    }
}

/// rows[r][begin + i] to columns[i * kRows + r] for i < n, n at most kGroup.
inline void group_to_columns(const std::uint8_t* const (&rows)[kRows], std::size_t begin,
                             std::size_t n, std::int32_t* columns) {
    Bytes16 v[kRows] = {};
    for (int r = 0; r < kRows; ++r) std::memcpy(&v[r], rows[r] + begin, n);
    riffle(v, 3);
    std::uint8_t bytes[kGroup * kRows];
    std::memcpy(bytes, v, sizeof v);
    for (std::size_t i = 0; i < kGroup * kRows; ++i) columns[i] = bytes[i];
}

inline void group_to_rows(const std::uint8_t* columns, std::size_t begin, std::size_t n,
                          std::uint8_t* const (&rows)[kRows]) {
    Bytes16 v[kRows];
    std::memcpy(v, columns, sizeof v);
    riffle(v, 4);
    for (int r = 0; r < kRows; ++r) std::memcpy(rows[r] + begin, &v[r], n);
}

LONGVIEW_CLONES
void rows_to_columns(const std::uint8_t* const (&rows)[kRows], std::size_t bytes,
                     std::int32_t* columns) {
    std::size_t at = 0;
    for (; at + kGroup <= bytes; at += kGroup)
        group_to_columns(rows, at, kGroup, columns + at * kRows);
    if (at < bytes) group_to_columns(rows, at, bytes - at, columns + at * kRows);
}

void columns_to_rows(const std::uint8_t* columns, std::size_t bytes,
                     std::uint8_t* const (&rows)[kRows]) {
    std::size_t at = 0;
    for (; at + kGroup <= bytes; at += kGroup)
        group_to_rows(columns + at * kRows, at, kGroup, rows);
    if (at < bytes) group_to_rows(columns + at * kRows, at, bytes - at, rows);
}

inline std::uint8_t to_pixel(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

/// Every output pixel of eight rows, from columns to columns.
LONGVIEW_CLONES
void blend_columns(const std::int32_t* in, const Taps& taps, std::uint8_t* out) {
    const Int8 half = Int8{} + (1 << (kFractionBits - 1));
    const std::size_t outputs = taps.first.size();
    for (std::size_t x = 0; x < outputs; ++x) {
        const std::int32_t* const weights = &taps.weights[x * static_cast<std::size_t>(taps.most)];
        const std::int32_t* p = in + std::ptrdiff_t{taps.first[x]} * kChannels * kRows;
        Int8 sums[kChannels] = {half, half, half};
        for (int k = 0; k < taps.count[x]; ++k) {
            for (Int8& sum : sums) {
                Int8 pixels;
                std::memcpy(&pixels, p, sizeof pixels);
                sum += pixels * weights[k];
                p += kRows;
            }
        }
        std::int32_t values[kChannels * kRows];
        std::memcpy(values, sums, sizeof values);
        for (int i = 0; i < kChannels * kRows; ++i) out[i] = to_pixel(values[i]);
        out += kChannels * kRows;
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
        for (std::size_t i = 0; i < n; ++i) out[begin + i] = to_pixel(sums[i]);
    }
}

std::size_t row_bytes(int width) {
    return static_cast<std::size_t>(width) * kChannels;
}

/// The input rows [first, end) resized to `width`.
Image resize_width(const Image& image, int width, int first, int end) {
    const Taps taps = make_taps(image.width, width);
    const std::size_t in_bytes = row_bytes(image.width), out_bytes = row_bytes(width);
    Image out{width, end - first, {}};
    out.rgb.resize(out_bytes * static_cast<std::size_t>(out.height));
    std::vector<std::int32_t> in_columns((in_bytes + kGroup) * kRows);
    std::vector<std::uint8_t> out_columns((out_bytes + kGroup) * kRows);
    std::vector<std::uint8_t> spare(out_bytes);  // for rows below the last
    for (int y = first; y < end; y += kRows) {
        const std::uint8_t* from[kRows];
        std::uint8_t* to[kRows];
        for (int r = 0; r < kRows; ++r) {
            const auto row = static_cast<std::size_t>(std::min(y + r, end - 1));
            from[r] = image.rgb.data() + row * in_bytes;
            to[r] = y + r < end
                        ? out.rgb.data() + static_cast<std::size_t>(y + r - first) * out_bytes
                        : spare.data();
        }
        rows_to_columns(from, in_bytes, in_columns.data());
        blend_columns(in_columns.data(), taps, out_columns.data());
        columns_to_rows(out_columns.data(), out_bytes, to);
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

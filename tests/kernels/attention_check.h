// What the attention tests share: reproducible numbers, guarded storage, and comparison against a
// float64 formula with a tolerance for each element.
#pragma once

#include <QString>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace longview::testing {

/// Rounding unit of float: the relative error of one operation.
inline constexpr double kUnit = 0x1p-24;

/// Reproducible numbers in [-1, 1).
class Numbers {
  public:
    explicit Numbers(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}
    float next() {
        state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
        return static_cast<float>(static_cast<std::int32_t>(state_ >> 32)) * 0x1p-31F;
    }
    std::vector<float> many(std::int64_t count, float scale = 1.0F) {
        std::vector<float> out(static_cast<std::size_t>(count));
        for (float& x : out) x = scale * next();
        return out;
    }

  private:
    std::uint64_t state_;
};

/// Rows of floats in the midst of guard values: before, after, and between the rows. Starts as
/// NaN, so that an element nobody wrote fails every comparison.
class GuardedRows {
  public:
    GuardedRows(std::int64_t rows, std::int64_t cols, std::int64_t gap = 5)
        : rows_(rows),
          cols_(cols),
          stride_(cols + gap),
          data_(static_cast<std::size_t>(2 * kBand + rows * stride_), kGuard) {
        for (std::int64_t r = 0; r < rows; ++r)
            std::fill_n(view().f32(r), cols, std::numeric_limits<float>::quiet_NaN());
    }
    GuardedRows(std::int64_t rows, std::int64_t cols, const std::vector<float>& values)
        : GuardedRows(rows, cols) {
        for (std::int64_t r = 0; r < rows; ++r)
            std::copy_n(values.data() + r * cols, cols, view().f32(r));
    }

    Matrix view() { return {data_.data() + kBand, DType::kF32, rows_, cols_, stride_}; }
    std::vector<float> values() {
        std::vector<float> out;
        for (std::int64_t r = 0; r < rows_; ++r)
            out.insert(out.end(), view().f32(r), view().f32(r) + cols_);
        return out;
    }
    /// Whether nothing around the rows was written.
    bool intact() const {
        for (std::int64_t i = 0; i < static_cast<std::int64_t>(data_.size()); ++i) {
            const std::int64_t at = i - kBand;
            const bool inside = at >= 0 && at < rows_ * stride_ && at % stride_ < cols_;
            if (!inside && data_[static_cast<std::size_t>(i)] != kGuard) return false;
        }
        return true;
    }

  private:
    static constexpr std::int64_t kBand = 64;
    static constexpr float kGuard = -12345.678F;
    std::int64_t rows_, cols_, stride_;
    std::vector<float> data_;
};

/// Empty when every element is within its tolerance, else a description of the first miss and
/// how many there are. NaN on either side is a miss.
inline QString misses(const std::vector<float>& actual, const std::vector<double>& expected,
                      const std::vector<double>& tolerance) {
    if (actual.size() != expected.size() || expected.size() != tolerance.size())
        return QStringLiteral("sizes differ: %1 and %2").arg(actual.size()).arg(expected.size());
    std::size_t count = 0;
    std::size_t first = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
        if (std::abs(static_cast<double>(actual[i]) - expected[i]) <= tolerance[i]) continue;
        if (count++ == 0) first = i;
    }
    if (count == 0) return {};
    return QStringLiteral("%1 of %2 elements off, first [%3]: %4, expected %5 within %6")
        .arg(count)
        .arg(actual.size())
        .arg(first)
        .arg(static_cast<double>(actual[first]), 0, 'g', 9)
        .arg(expected[first], 0, 'g', 9)
        .arg(tolerance[first], 0, 'g', 3);
}

/// Bit for bit, so that -0 and 0 differ and a NaN equals itself.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

/// Round to nearest even by value: the neighbour in bf16 that is closer, computed apart from the
/// code under test.
inline std::uint16_t bf16_nearest(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const auto down = static_cast<std::uint16_t>(bits >> 16);
    const auto up = static_cast<std::uint16_t>(down + 1);
    const auto value = [](std::uint16_t b) {
        return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16));
    };
    const double below = std::abs(static_cast<double>(x) - value(down));
    const double above = std::abs(value(up) - static_cast<double>(x));
    if (below != above) return below < above ? down : up;
    return down % 2 == 0 ? down : up;
}

inline float bf16_value(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace longview::testing

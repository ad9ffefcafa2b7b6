// What the kernel tests share: random operands of every stored type with their exact values as
// doubles, outputs with poison and guard bands, and a comparison that fails on NaN.
#pragma once

#include <QString>
#include <QtTest>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace longview::test {

inline constexpr double kEpsilon = 0x1p-24;  // half a unit in the last place of a float

/// Reproducible numbers in [-1, 1).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}
    std::uint64_t bits() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }
    float next() { return static_cast<float>(static_cast<std::int32_t>(bits() >> 32)) * 0x1p-31F; }
    std::int64_t below(std::int64_t limit) {
        return static_cast<std::int64_t>(bits() >> 11) % limit;
    }

  private:
    std::uint64_t state_;
};

/// The stored bits as a number, by the definition of the formats.
inline double half_value(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    const double size = exponent == 0    ? std::ldexp(fraction, -24)
                        : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                         : std::ldexp(1024 + fraction, exponent - 25);
    return (bits & 0x8000) != 0 ? -size : size;
}
inline double bfloat_value(std::uint16_t bits) {
    return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
}

/// Random weights [rows, cols], aligned to their element and no more.
class Weights {
  public:
    Weights(std::int64_t rows, std::int64_t cols, DType dtype, std::uint64_t seed)
        : rows_(rows), cols_(cols), dtype_(dtype) {
        const auto count = static_cast<std::size_t>(rows * cols);
        bytes_.resize((count + 1) * size_of(dtype));
        values_.resize(count);
        Random random(seed);
        for (std::size_t i = 0; i < count; ++i) set(i, random.next());
    }
    /// Stores a value rounded (cut) to the type.
    void set(std::size_t i, float value) {
        const auto bits = std::bit_cast<std::uint32_t>(value);
        if (dtype_ == DType::kF32) {
            std::memcpy(bytes_.data() + (i + 1) * 4, &value, 4);
            values_[i] = static_cast<double>(value);
            return;
        }
        std::uint16_t stored = static_cast<std::uint16_t>(bits >> 16);
        if (dtype_ == DType::kF16) {
            const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
            stored = static_cast<std::uint16_t>(bits >> 16 & 0x8000);  // too small: zero
            if (exponent > 0)
                stored |= static_cast<std::uint16_t>(exponent << 10 | (bits >> 13 & 1023));
        }
        std::memcpy(bytes_.data() + (i + 1) * 2, &stored, 2);
        values_[i] = dtype_ == DType::kF16 ? half_value(stored) : bfloat_value(stored);
    }
    WeightView view() const { return {bytes_.data() + size_of(dtype_), dtype_, rows_, cols_}; }
    double at(std::int64_t r, std::int64_t c) const {
        return values_[static_cast<std::size_t>(r * cols_ + c)];
    }
    const std::byte* bytes() const { return bytes_.data() + size_of(dtype_); }

  private:
    std::int64_t rows_, cols_;
    DType dtype_;
    std::vector<std::byte> bytes_;
    std::vector<double> values_;
};

/// A float matrix with a stride of its own between guard bands, at an odd address. Everything is
/// poison (a NaN that no computation makes) until written.
class Rows {
  public:
    Rows(std::int64_t rows, std::int64_t cols, std::int64_t gap = 3)
        : rows_(rows), cols_(cols), stride_(cols + gap) {
        values_.assign(static_cast<std::size_t>(2 * kGuard + rows * stride_ + gap),
                       std::bit_cast<float>(kPoison));
    }
    static Rows random(std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                       std::int64_t gap = 3) {
        Rows result(rows, cols, gap);
        Random numbers(seed);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < cols; ++c) result.at(r, c) = numbers.next();
        return result;
    }
    float& at(std::int64_t r, std::int64_t c) {
        return values_[static_cast<std::size_t>(kGuard + r * stride_ + c)];
    }
    float at(std::int64_t r, std::int64_t c) const {
        return values_[static_cast<std::size_t>(kGuard + r * stride_ + c)];
    }
    std::int64_t rows() const { return rows_; }
    std::int64_t cols() const { return cols_; }
    Matrix matrix() { return {values_.data() + kGuard, DType::kF32, rows_, cols_, stride_}; }
    ConstMatrix view() const {
        return {values_.data() + kGuard, DType::kF32, rows_, cols_, stride_};
    }
    const float* row(std::int64_t r) const { return values_.data() + kGuard + r * stride_; }

    /// Nothing outside of the rows was written.
    bool guards_intact() const {
        for (std::size_t i = 0; i < values_.size(); ++i) {
            const std::int64_t at = static_cast<std::int64_t>(i) - kGuard;
            const bool inside = at >= 0 && at < rows_ * stride_ && at % stride_ < cols_;
            if (!inside && std::bit_cast<std::uint32_t>(values_[i]) != kPoison) return false;
        }
        return true;
    }
    /// Row r of this and row s of another hold the same bits.
    bool same_row(std::int64_t r, const Rows& other, std::int64_t s) const {
        return cols_ == other.cols_ &&
               (cols_ == 0 || std::memcmp(row(r), other.row(s),
                                          static_cast<std::size_t>(cols_) * sizeof(float)) == 0);
    }
    bool same(const Rows& other) const {
        for (std::int64_t r = 0; r < rows_; ++r)
            if (!same_row(r, other, r)) return false;
        return rows_ == other.rows_;
    }

  private:
    static constexpr std::int64_t kGuard = 17;
    static constexpr std::uint32_t kPoison = 0x7FC0BEEF;
    std::int64_t rows_, cols_, stride_;
    std::vector<float> values_;
};

struct Expected {
    double value;
    double tolerance;
};

/// Empty when every element is within its tolerance and no guard was touched; else what differs.
inline QString difference(const Rows& actual,
                          const std::function<Expected(std::int64_t, std::int64_t)>& expected) {
    if (!actual.guards_intact()) return QStringLiteral("wrote outside of the rows");
    QString first;
    std::int64_t misses = 0;
    for (std::int64_t r = 0; r < actual.rows(); ++r) {
        for (std::int64_t c = 0; c < actual.cols(); ++c) {
            const Expected e = expected(r, c);
            const double is = static_cast<double>(actual.at(r, c));
            if (std::abs(is - e.value) <= e.tolerance) continue;  // false for NaN
            if (misses++ == 0)
                first = QStringLiteral("[%1, %2] is %3, expected %4 +- %5")
                            .arg(r)
                            .arg(c)
                            .arg(is, 0, 'g', 9)
                            .arg(e.value, 0, 'g', 9)
                            .arg(e.tolerance, 0, 'g', 3);
        }
    }
    return misses == 0 ? QString() : first + QStringLiteral("; %1 misses").arg(misses);
}

/// Fails the running test with the message of difference().
#define LONGVIEW_COMPARE(actual, ...)                                               \
    do {                                                                            \
        const QString message_ = ::longview::test::difference(actual, __VA_ARGS__); \
        QVERIFY2(message_.isEmpty(), qPrintable(message_));                         \
    } while (false)

/// Fails unless the statement throws an Error of this category.
#define LONGVIEW_THROWS(statement, expected_category)                                       \
    do {                                                                                    \
        bool thrown_ = false;                                                               \
        try {                                                                               \
            statement;                                                                      \
        } catch (const ::longview::Error& e_) {                                             \
            thrown_ = true;                                                                 \
            QCOMPARE(static_cast<int>(e_.category()), static_cast<int>(expected_category)); \
        }                                                                                   \
        QVERIFY2(thrown_, "nothing was thrown");                                            \
    } while (false)

}  // namespace longview::test

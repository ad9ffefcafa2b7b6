// Operands that exist twice: as floats for the CPU form, which is the reference, and in device
// memory as the GPU form takes them. Values are rounded to bf16 before either sees them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/gpu/gpu_test.h"

namespace longview::gpu_test {

/// How a matrix lies in device memory: so many bytes off alignment, so many elements between rows.
struct Placing {
    std::size_t shift_bytes = 0;
    std::int64_t extra_stride = 0;
};

/// Rows that an operator reads. Memory for one row also where there is none.
class Input {
  public:
    Input(Random& random, std::int64_t rows, std::int64_t cols, Placing placing = {},
          float scale = 1.0F)
        : Input(random.normals_bf16(std::max<std::int64_t>(rows, 1) * (cols + placing.extra_stride),
                                    scale),
                rows, cols, placing) {}
    /// `values` holds rows of cols + placing.extra_stride elements.
    Input(std::vector<float> values, std::int64_t rows, std::int64_t cols, Placing placing = {})
        : rows_(rows),
          cols_(cols),
          stride_(cols + placing.extra_stride),
          values_(std::move(values)),
          device_(upload_bf16(values_, placing.shift_bytes)) {}

    ConstMatrix host() const { return {values_.data(), DType::kF32, rows_, cols_, stride_}; }
    ConstMatrix device() const { return {device_.as<void>(), DType::kBF16, rows_, cols_, stride_}; }
    const std::vector<float>& values() const { return values_; }
    std::int64_t stride() const { return stride_; }

  private:
    std::int64_t rows_, cols_, stride_;
    std::vector<float> values_;
    DeviceMemory device_;
};

/// Rows that an operator writes; may begin with contents for an operation in place.
class Output {
  public:
    Output(std::int64_t rows, std::int64_t cols, DType dtype = DType::kBF16, Placing placing = {})
        : rows_(rows),
          cols_(cols),
          stride_(cols + placing.extra_stride),
          dtype_(dtype),
          host_(static_cast<std::size_t>(std::max<std::int64_t>(rows, 1) * stride_), 0.0F),
          device_(host_.size() * size_of(dtype), placing.shift_bytes) {}

    Matrix host() { return {host_.data(), DType::kF32, rows_, cols_, stride_}; }
    Matrix device() const { return {device_.as<void>(), dtype_, rows_, cols_, stride_}; }
    /// Copies the rows of `from`, which must lie alike, to both sides.
    void begin_with(const Input& from) {
        host_ = from.values();
        const std::vector<std::uint16_t> bits = to_bf16(host_);
        device_.write(bits.data(), bits.size() * sizeof(std::uint16_t));
    }

    /// Compares the rows of both sides; what lies between rows on the device must be untouched
    /// (unless the matrix began with contents).
    void compare(const std::string& what, double bound, bool fresh = true) const {
        device_.check_guards();
        const std::vector<float> got =
            dtype_ == DType::kF32 ? device_.read_f32() : device_.read_bf16();
        std::vector<float> got_rows;
        std::vector<float> want_rows;
        for (std::int64_t r = 0; r < rows_; ++r) {
            for (std::int64_t i = 0; i < stride_; ++i) {
                const auto at = static_cast<std::size_t>(r * stride_ + i);
                if (i < cols_) {
                    got_rows.push_back(got[at]);
                    want_rows.push_back(host_[at]);
                } else {
                    expect(!fresh || std::isnan(got[at]), what + ": wrote between rows");
                }
            }
        }
        if (rows_ > 0) expect_close(what, got_rows, want_rows, bound);
    }
    std::vector<float> read() const {
        return dtype_ == DType::kF32 ? device_.read_f32() : device_.read_bf16();
    }

  private:
    std::int64_t rows_, cols_, stride_;
    DType dtype_;
    std::vector<float> host_;
    DeviceMemory device_;
};

/// A bf16 weight, by default scaled so that products of normal inputs are about normal.
class BothWeight {
  public:
    BothWeight(Random& random, std::int64_t rows, std::int64_t cols, std::size_t shift_bytes = 0)
        : BothWeight(random.normals_bf16(rows * cols, 1.0F / std::sqrt(static_cast<float>(cols))),
                     rows, cols, shift_bytes) {}
    BothWeight(const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
               std::size_t shift_bytes = 0)
        : rows_(rows),
          cols_(cols),
          bits_(to_bf16(values)),
          device_(upload_bf16(values, shift_bytes)) {}

    WeightView host() const { return {bits_.data(), DType::kBF16, rows_, cols_}; }
    WeightView device() const { return {device_.as<void>(), DType::kBF16, rows_, cols_}; }

  private:
    std::int64_t rows_, cols_;
    std::vector<std::uint16_t> bits_;
    DeviceMemory device_;
};

/// fp32 values such as gains and biases, as bf16 could hold them (checkpoints are bf16).
class Floats {
  public:
    Floats(Random& random, std::int64_t count, float mean, float deviation)
        : values_(random.normals_bf16(count, deviation)), device_(upload(values_, mean)) {}

    const float* host() const { return values_.data(); }
    const float* device() const { return device_.as<float>(); }

  private:
    static DeviceMemory upload(std::vector<float>& values, float mean) {
        for (float& v : values) v = from_bf16(to_bf16(v + mean));
        return upload_f32(values);
    }
    std::vector<float> values_;
    DeviceMemory device_;
};

/// bf16 results: each rounding to bf16 leaves a relative error of 2^-9 / sqrt(3) = 1.1e-3 on
/// average, and at most three follow one another (normed input, product, activation): 2e-3. Few
/// results do not average, and one of them may be what cancellation left.
inline double bf16_bound(std::int64_t results) {
    return results < 256 ? 2e-2 : 4e-3;
}

}  // namespace longview::gpu_test

// Element types and the borrowed views that operators take. Views own nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/error.h"

namespace longview {

enum class DType : std::uint8_t { kF32, kF16, kBF16 };

constexpr std::size_t size_of(DType dtype) {
    return dtype == DType::kF32 ? 4 : 2;
}
constexpr const char* dtype_name(DType dtype) {
    return dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16";
}

/// Activations: [rows, cols], elements of a row contiguous, `stride` elements from row to row.
struct Matrix {
    void* data = nullptr;
    DType dtype = DType::kF32;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t stride = 0;

    explicit operator bool() const { return data != nullptr; }
    std::byte* row(std::int64_t r) const {
        return static_cast<std::byte*>(data) +
               r * stride * static_cast<std::int64_t>(size_of(dtype));
    }
    /// The rows [first, first + count).
    Matrix slice(std::int64_t first, std::int64_t count) const {
        return {row(first), dtype, count, cols, stride};
    }
    /// Row r as floats; dtype must be kF32.
    float* f32(std::int64_t r = 0) const { return reinterpret_cast<float*>(row(r)); }
};

/// As Matrix, read only.
struct ConstMatrix {
    const void* data = nullptr;
    DType dtype = DType::kF32;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    std::int64_t stride = 0;

    ConstMatrix() = default;
    ConstMatrix(const void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_,
                std::int64_t stride_)
        : data(data_), dtype(dtype_), rows(rows_), cols(cols_), stride(stride_) {}
    ConstMatrix(const Matrix& m)  // NOLINT(google-explicit-constructor): a view of a view
        : data(m.data), dtype(m.dtype), rows(m.rows), cols(m.cols), stride(m.stride) {}

    explicit operator bool() const { return data != nullptr; }
    const std::byte* row(std::int64_t r) const {
        return static_cast<const std::byte*>(data) +
               r * stride * static_cast<std::int64_t>(size_of(dtype));
    }
    ConstMatrix slice(std::int64_t first, std::int64_t count) const {
        return {row(first), dtype, count, cols, stride};
    }
    const float* f32(std::int64_t r = 0) const { return reinterpret_cast<const float*>(row(r)); }
};

/// A weight matrix [rows = outputs, cols = inputs] as published: row-major, rows contiguous,
/// aligned to its element size. y = W x.
struct WeightView {
    const void* data = nullptr;
    DType dtype = DType::kBF16;
    std::int64_t rows = 0;
    std::int64_t cols = 0;

    std::size_t size_bytes() const {
        return static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols) * size_of(dtype);
    }
    const std::byte* row(std::int64_t r) const {
        return static_cast<const std::byte*>(data) +
               r * cols * static_cast<std::int64_t>(size_of(dtype));
    }
};

}  // namespace longview

// Matrices and paged caches for the attention tests: the same values as bf16 on the device and as
// floats for the CPU backend. What a kernel may not touch stays all ones (NaN) and is checked.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tests/gpu/gpu_test.h"

namespace longview::gpu_test {

/// A bf16 matrix on the device with `gap` unused elements after each row.
class DeviceRows {
  public:
    DeviceRows(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0,
               std::size_t shift_bytes = 0)
        : rows_(rows),
          cols_(cols),
          stride_(cols + gap),
          memory_(static_cast<std::size_t>(std::max<std::int64_t>(rows * stride_, 1)) * 2,
                  shift_bytes) {}
    /// Rounds to bf16.
    DeviceRows(std::int64_t rows, std::int64_t cols, const std::vector<float>& values,
               std::int64_t gap = 0, std::size_t shift_bytes = 0)
        : DeviceRows(rows, cols, gap, shift_bytes) {
        std::vector<std::uint16_t> bits(static_cast<std::size_t>(rows * stride_), 0xFFFF);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t i = 0; i < cols; ++i)
                bits[static_cast<std::size_t>(r * stride_ + i)] =
                    to_bf16(values[static_cast<std::size_t>(r * cols + i)]);
        if (!bits.empty()) memory_.write(bits.data(), bits.size() * 2);
    }

    Matrix view() const { return {memory_.as<void>(), DType::kBF16, rows_, cols_, stride_}; }
    /// Columns [first, first + count).
    Matrix columns(std::int64_t first, std::int64_t count) const {
        return {memory_.as<std::uint16_t>() + first, DType::kBF16, rows_, count, stride_};
    }
    /// The values, after a look at what lies around them.
    std::vector<float> read() const {
        memory_.check_guards();
        std::vector<float> out;
        if (rows_ == 0) return out;
        const std::vector<std::byte> bytes = memory_.read();
        std::vector<std::uint16_t> bits(bytes.size() / 2);
        std::memcpy(bits.data(), bytes.data(), bits.size() * 2);
        for (std::int64_t r = 0; r < rows_; ++r)
            for (std::int64_t i = 0; i < stride_; ++i) {
                const std::uint16_t value = bits[static_cast<std::size_t>(r * stride_ + i)];
                if (i < cols_) {
                    out.push_back(from_bf16(value));
                } else {
                    expect(value == 0xFFFF, "the space between two rows was written");
                }
            }
        return out;
    }

  private:
    std::int64_t rows_, cols_, stride_;
    DeviceMemory memory_;
};

/// The positions [first, first + count) of one layer's cache, bf16 (or kF32) in pages on the
/// device and kF32 on the host. Pages are in no order, and null before `first`'s.
class PagedCache {
  public:
    struct Shape {
        std::int64_t page_tokens = 256;
        int kv_heads = 1;
        int head_dim = 64;
        std::int64_t layer_offset_bytes = 512;
        DType dtype = DType::kBF16;
    };

    PagedCache(const Shape& shape, std::int64_t first, std::int64_t count)
        : shape_(shape),
          first_(first),
          first_page_(first / shape.page_tokens),
          pages_((first + count + shape.page_tokens - 1) / shape.page_tokens - first_page_),
          page_values_(2 * shape.kv_heads * shape.page_tokens * shape.head_dim),
          page_bytes_((shape.layer_offset_bytes +
                       page_values_ * static_cast<std::int64_t>(size_of(shape.dtype)) + 64 + 255) /
                      256 * 256),
          host_(static_cast<std::size_t>(pages_ * page_values_), 0.0F),
          memory_(static_cast<std::size_t>(pages_ * page_bytes_)),
          device_table_(static_cast<std::size_t>(first_page_ + pages_) * sizeof(void*)) {
        std::vector<void*> device(static_cast<std::size_t>(first_page_ + pages_), nullptr);
        host_table_ = device;
        for (std::int64_t i = 0; i < pages_; ++i) {
            const auto at = static_cast<std::size_t>(first_page_ + i);
            device[at] = memory_.as<std::byte>() + place(i) * page_bytes_;
            host_table_[at] = host_.data() + i * page_values_;
        }
        device_table_.write(device.data(), device.size() * sizeof(void*));
    }

    kernels::KvView device() const {
        return {device_table_.as<void*>(), shape_.page_tokens,
                shape_.layer_offset_bytes, shape_.dtype,
                shape_.kv_heads,           shape_.head_dim};
    }
    kernels::KvView host() {
        return {host_table_.data(), shape_.page_tokens, 0,
                DType::kF32,        shape_.kv_heads,    shape_.head_dim};
    }

    /// Random keys and values at the first `count` positions; elsewhere the device keeps NaN.
    void fill(Random& random, std::int64_t count, float key_scale) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(pages_ * page_bytes_),
                                     std::byte{0xFF});
        const std::int64_t width = std::int64_t{shape_.kv_heads} * shape_.head_dim;
        for (std::int64_t t = first_; t < first_ + count; ++t)
            for (const bool value : {false, true}) {
                const std::vector<float> row = random.normals_bf16(width, value ? 1.0F : key_scale);
                for (int head = 0; head < shape_.kv_heads; ++head)
                    for (int i = 0; i < shape_.head_dim; ++i) {
                        const float x = row[static_cast<std::size_t>(head * shape_.head_dim + i)];
                        const std::uint16_t bits = to_bf16(x);
                        host_[host_index(t, head, i, value)] = x;
                        std::memcpy(&bytes[device_index(t, head, i, value)], &bits, 2);
                    }
            }
        memory_.write(bytes.data(), bytes.size());
    }

    /// What the device and the host hold at the first `count` positions. Throws when the device
    /// wrote anything else.
    struct Contents {
        std::vector<float> device_keys, host_keys, device_values, host_values;
    };
    Contents contents(std::int64_t count) const {
        memory_.check_guards();
        device_table_.check_guards();
        std::vector<std::byte> bytes = memory_.read();
        Contents c;
        for (std::int64_t t = first_; t < first_ + count; ++t)
            for (int head = 0; head < shape_.kv_heads; ++head)
                for (int i = 0; i < shape_.head_dim; ++i)
                    for (const bool value : {false, true}) {
                        std::byte* const at = &bytes[device_index(t, head, i, value)];
                        float x = 0.0F;
                        std::uint16_t bits = 0;
                        if (shape_.dtype == DType::kF32) {
                            std::memcpy(&x, at, 4);
                        } else {
                            std::memcpy(&bits, at, 2);
                            x = from_bf16(bits);
                        }
                        std::fill_n(at, size_of(shape_.dtype), std::byte{0xFF});
                        (value ? c.device_values : c.device_keys).push_back(x);
                        (value ? c.host_values : c.host_keys)
                            .push_back(host_[host_index(t, head, i, value)]);
                    }
        expect(std::all_of(bytes.begin(), bytes.end(),
                           [](std::byte b) { return b == std::byte{0xFF}; }),
               "the cache was written beside the new positions");
        return c;
    }

  private:
    /// Where the i-th page lies in memory.
    std::int64_t place(std::int64_t i) const {
        return pages_ % 7 == 0 ? pages_ - 1 - i : (i * 7 + 3) % pages_;
    }
    std::int64_t element(std::int64_t position, int head, int dim, bool value) const {
        return ((value ? shape_.kv_heads : 0) + head) * shape_.page_tokens * shape_.head_dim +
               position % shape_.page_tokens * shape_.head_dim + dim;
    }
    std::size_t host_index(std::int64_t position, int head, int dim, bool value) const {
        const std::int64_t page = position / shape_.page_tokens - first_page_;
        return static_cast<std::size_t>(page * page_values_ + element(position, head, dim, value));
    }
    std::size_t device_index(std::int64_t position, int head, int dim, bool value) const {
        const std::int64_t page = position / shape_.page_tokens - first_page_;
        return static_cast<std::size_t>(place(page) * page_bytes_ + shape_.layer_offset_bytes +
                                        element(position, head, dim, value) *
                                            static_cast<std::int64_t>(size_of(shape_.dtype)));
    }

    Shape shape_;
    std::int64_t first_, first_page_, pages_, page_values_, page_bytes_;
    std::vector<float> host_;
    std::vector<void*> host_table_;
    DeviceMemory memory_;
    DeviceMemory device_table_;
};

}  // namespace longview::gpu_test

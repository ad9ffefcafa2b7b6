// A paged key/value cache for tests, with its own address arithmetic. Every byte that nobody wrote
// is 0xFF: NaN in both types, so a key read beyond the sequence shows in the result.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/attention_check.h"

namespace longview::testing {

class KvStore {
  public:
    KvStore(std::int64_t positions, std::int64_t page_tokens, DType dtype, int kv_heads,
            int head_dim)
        : page_tokens_(page_tokens), dtype_(dtype), kv_heads_(kv_heads), head_dim_(head_dim) {
        const std::int64_t pages = (positions + page_tokens - 1) / page_tokens;
        const std::size_t bytes = kBefore + 2 * part_bytes() + kAfter;
        for (std::int64_t i = 0; i < pages; ++i) {
            pages_.emplace_back(bytes, std::uint8_t{0xFF});
            pointers_.push_back(nullptr);
        }
        // Neighbouring pages in any order, as an allocator hands them out.
        for (std::size_t i = 0; i < pages_.size(); ++i)
            pointers_[i] = pages_[(i * 7 + 3) % pages_.size()].data();
        if (pages_.size() % 7 == 0)
            for (std::size_t i = 0; i < pages_.size(); ++i) pointers_[i] = pages_[i].data();
    }

    kernels::KvView view() const {
        return {pointers_.data(), page_tokens_, kBefore, dtype_, kv_heads_, head_dim_};
    }

    /// value: of V instead of K.
    float get(std::int64_t position, int head, int dim, bool value) const {
        const std::uint8_t* const at = address(position, head, dim, value);
        if (dtype_ == DType::kF32) {
            float x;
            std::memcpy(&x, at, sizeof(x));
            return x;
        }
        std::uint16_t bits;
        std::memcpy(&bits, at, sizeof(bits));
        return bf16_value(bits);
    }
    /// Rounded to the store's type.
    void set(std::int64_t position, int head, int dim, bool value, float x) {
        std::uint8_t* const at = address(position, head, dim, value);
        const std::uint16_t bits = bf16_nearest(x);
        if (dtype_ == DType::kF32) {
            std::memcpy(at, &x, sizeof(x));
        } else {
            std::memcpy(at, &bits, sizeof(bits));
        }
    }
    void fill(std::int64_t positions, Numbers& numbers, float scale) {
        for (std::int64_t t = 0; t < positions; ++t)
            for (int h = 0; h < kv_heads_; ++h)
                for (int i = 0; i < head_dim_; ++i)
                    for (const bool value : {false, true})
                        set(t, h, i, value, scale * numbers.next());
    }
    /// Whether what lies before and after this layer's part of each page was left alone.
    bool intact() const {
        const auto untouched = [](std::uint8_t b) { return b == 0xFF; };
        return std::all_of(pages_.begin(), pages_.end(), [&](const auto& page) {
            return std::all_of(page.begin(), page.begin() + kBefore, untouched) &&
                   std::all_of(page.end() - kAfter, page.end(), untouched);
        });
    }

  private:
    static constexpr int kBefore = 48;
    static constexpr int kAfter = 64;

    std::size_t part_bytes() const {
        return static_cast<std::size_t>(kv_heads_ * page_tokens_ * head_dim_) * size_of(dtype_);
    }
    std::uint8_t* address(std::int64_t position, int head, int dim, bool value) const {
        const std::size_t element = static_cast<std::size_t>(
            (head * page_tokens_ + position % page_tokens_) * head_dim_ + dim);
        return static_cast<std::uint8_t*>(
                   pointers_[static_cast<std::size_t>(position / page_tokens_)]) +
               kBefore + (value ? part_bytes() : 0) + element * size_of(dtype_);
    }

    std::int64_t page_tokens_;
    DType dtype_;
    int kv_heads_;
    int head_dim_;
    std::vector<std::vector<std::uint8_t>> pages_;
    std::vector<void*> pointers_;
};

}  // namespace longview::testing

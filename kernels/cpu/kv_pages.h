// Where a position's key and value lie in the pages of a KvView.
#pragma once

#include "kernels/backend.h"

namespace longview::kernels::cpu {

class KvPages {
  public:
    explicit KvPages(const KvView& view)
        : view_(view),
          row_bytes_(static_cast<std::int64_t>(size_of(view.dtype)) * view.head_dim),
          head_bytes_(row_bytes_ * view.page_tokens) {}

    /// The key of `position` for a key/value head: [head_dim].
    void* key(std::int64_t position, int kv_head) const {
        const std::int64_t page = position / view_.page_tokens;
        return static_cast<std::byte*>(view_.pages[page]) + view_.layer_offset_bytes +
               kv_head * head_bytes_ + (position - page * view_.page_tokens) * row_bytes_;
    }
    /// The value likewise.
    void* value(std::int64_t position, int kv_head) const {
        return static_cast<std::byte*>(key(position, kv_head)) + view_.kv_heads * head_bytes_;
    }

  private:
    const KvView& view_;
    std::int64_t row_bytes_;
    std::int64_t head_bytes_;
};

/// Broken shapes are ours: Category::kBug.
inline void check_kv(const KvView& kv) {
    LONGVIEW_CHECK(kv.kv_heads > 0 && kv.head_dim > 0 && kv.page_tokens > 0,
                   "a key/value cache needs heads, dims and pages");
    LONGVIEW_CHECK(kv.dtype == DType::kF32 || kv.dtype == DType::kBF16,
                   "keys and values are cached as kF32 or kBF16");
    LONGVIEW_CHECK(kv.pages != nullptr, "a key/value cache without pages");
}

}  // namespace longview::kernels::cpu

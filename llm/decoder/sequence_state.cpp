#include "llm/decoder/sequence_state.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace longview::llm {
namespace {

std::uint64_t fresh_memory_id() {
    static std::atomic<std::uint64_t> last = 0;
    return ++last;
}

}  // namespace

std::size_t StateLayout::lightning_bytes() const {
    return std::size_t{4} * static_cast<std::size_t>(lightning_layers) *
           static_cast<std::size_t>(heads) * static_cast<std::size_t>(head_dim) *
           static_cast<std::size_t>(head_dim);
}

std::size_t StateLayout::page_bytes() const {
    return size_of(kv_dtype) * 2 * static_cast<std::size_t>(softmax_layers) *
           static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(page_tokens) *
           static_cast<std::size_t>(head_dim);
}

std::size_t StateLayout::bytes_at(std::int64_t tokens) const {
    const std::int64_t pages = (tokens + page_tokens - 1) / page_tokens;
    return lightning_bytes() + static_cast<std::size_t>(pages) * page_bytes();
}

StateLayout make_state_layout(const TextConfig& config, DType kv_dtype, std::int64_t page_tokens) {
    return {.lightning_layers = config.count(AttentionKind::kLightning),
            .softmax_layers = config.count(AttentionKind::kSoftmax),
            .heads = config.num_attention_heads,
            .head_dim = config.head_dim,
            .kv_heads = config.num_key_value_heads,
            .page_tokens = page_tokens,
            .kv_dtype = kv_dtype};
}

SequenceState::SequenceState(kernels::Backend& backend, const StateLayout& layout)
    : backend_(&backend), layout_(layout) {
    LONGVIEW_CHECK(layout.page_tokens > 0, "a page holds at least one position");
}

void SequenceState::prepare(std::int64_t tokens) {
    LONGVIEW_CHECK(tokens >= 0, "positions are only ever added");
    if (tokens == 0) return;

    std::shared_ptr<Buffer> lightning = lightning_;
    if (layout_.lightning_bytes() > 0 && (!lightning || lightning.use_count() > 2)) {
        // use_count 2: this state and the local copy of the pointer.
        auto fresh = std::make_shared<Buffer>(backend_->allocate(layout_.lightning_bytes()));
        if (lightning) {
            backend_->copy(fresh->data(), lightning->data(), layout_.lightning_bytes());
        } else {
            backend_->zero(fresh->data(), layout_.lightning_bytes());
        }
        lightning = std::move(fresh);
    }

    std::vector<std::shared_ptr<Buffer>> pages = pages_;
    const std::int64_t first_written = position_ / layout_.page_tokens;
    const std::int64_t needed =
        (position_ + tokens + layout_.page_tokens - 1) / layout_.page_tokens;
    bool changed = false;
    if (layout_.page_bytes() > 0) {
        for (std::int64_t p = first_written; p < needed; ++p) {
            const auto index = static_cast<std::size_t>(p);
            if (index < pages.size() && pages[index].use_count() <= 2) continue;
            auto fresh = std::make_shared<Buffer>(backend_->allocate(layout_.page_bytes()));
            if (index < pages.size()) {
                backend_->copy(fresh->data(), pages[index]->data(), layout_.page_bytes());
                pages[index] = std::move(fresh);
            } else {
                // Positions beyond the written ones are never read, but they are saved to files.
                backend_->zero(fresh->data(), layout_.page_bytes());
                pages.push_back(std::move(fresh));
            }
            changed = true;
        }
    }
    if (changed || lightning != lightning_) memory_id_ = fresh_memory_id();
    lightning_ = std::move(lightning);
    pages_ = std::move(pages);
    if (changed) update_page_table();
}

void SequenceState::advance(std::int64_t tokens) {
    position_ += tokens;
    LONGVIEW_CHECK(layout_.page_bytes() == 0 ||
                       position_ <= static_cast<std::int64_t>(pages_.size()) * layout_.page_tokens,
                   "advance() beyond what prepare() made writable");
}

float* SequenceState::lightning(int i) {
    LONGVIEW_CHECK(lightning_ && i >= 0 && i < layout_.lightning_layers, "no such lightning state");
    const std::size_t each =
        layout_.lightning_bytes() / static_cast<std::size_t>(layout_.lightning_layers);
    return reinterpret_cast<float*>(lightning_->as<std::byte>() +
                                    static_cast<std::size_t>(i) * each);
}

kernels::KvView SequenceState::kv(int i) const {
    LONGVIEW_CHECK(i >= 0 && i < layout_.softmax_layers && page_table_, "no such key/value layer");
    const std::size_t each =
        layout_.page_bytes() / static_cast<std::size_t>(layout_.softmax_layers);
    return {.pages = page_table_->as<void*>(),
            .page_tokens = layout_.page_tokens,
            .layer_offset_bytes = static_cast<std::int64_t>(each) * i,
            .dtype = layout_.kv_dtype,
            .kv_heads = layout_.kv_heads,
            .head_dim = layout_.head_dim};
}

SequenceState SequenceState::branch_at(std::int64_t position) const {
    LONGVIEW_CHECK(position >= 0, "a position before the beginning");
    SequenceState state(*backend_, layout_);
    state.position_ = position;
    state.memory_id_ = fresh_memory_id();
    if (layout_.lightning_bytes() > 0)
        state.lightning_ = std::make_shared<Buffer>(backend_->allocate(layout_.lightning_bytes()));
    const std::int64_t needed = (position + layout_.page_tokens - 1) / layout_.page_tokens;
    const auto count = std::min(pages_.size(), static_cast<std::size_t>(needed));
    state.pages_.assign(pages_.begin(), pages_.begin() + static_cast<std::ptrdiff_t>(count));
    state.update_page_table();
    return state;
}

const void* SequenceState::lightning_data() const {
    return lightning_ ? lightning_->data() : nullptr;
}

void SequenceState::update_page_table() {
    if (pages_.empty()) return;
    std::vector<void*> addresses;
    addresses.reserve(pages_.size());
    for (const auto& page : pages_) addresses.push_back(page->data());
    auto table = std::make_shared<Buffer>(backend_->allocate(addresses.size() * sizeof(void*)));
    backend_->copy_in(table->data(), addresses.data(), addresses.size() * sizeof(void*));
    page_table_ = std::move(table);
}

}  // namespace longview::llm

// config.json, NUL, preprocessor_config.json; and the same bytes as a shard index.
#include <algorithm>
#include <cstdlib>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/checkpoint/shard_index.h"

namespace {

namespace llm = longview::llm;

template <typename Call>
void refuses_or_returns(const Call& call) {
    try {
        call();
    } catch (const longview::Error& error) {
        if (error.category() == longview::Category::kBug) std::abort();
    }
}

void check_shapes(const llm::ModelConfig& config) {
    constexpr int kAffordable = 200;
    if (config.text.num_local_experts > kAffordable) return;
    if (config.text.num_hidden_layers > kAffordable) return;
    for (const llm::TensorSpec& spec : llm::expected_tensors(config)) {
        const bool is_sound =
            !spec.shape.empty() && spec.shape.size() <= 4 &&
            std::all_of(spec.shape.begin(), spec.shape.end(), [](auto n) { return n > 0; });
        if (!is_sound) std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const std::size_t split = std::min(text.find('\0'), text.size());
    refuses_or_returns([&] {
        check_shapes(llm::parse_config(text.substr(0, split),
                                       text.substr(std::min(split + 1, text.size())), "folder"));
    });
    refuses_or_returns([&] { llm::parse_shard_index(text, "index"); });
    return 0;
}

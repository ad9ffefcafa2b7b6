#include "llm/engine/stop_text.h"

#include <algorithm>
#include <utility>

namespace longview::llm {

StopText::StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {
    std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
}

std::string StopText::push(std::string_view text) {
    if (stopped_) return {};
    held_ += text;
    std::size_t cut = std::string::npos;
    for (const std::string& stop : stops_) cut = std::min(cut, held_.find(stop));
    if (cut != std::string::npos) {
        stopped_ = true;
        held_.resize(cut);
        return std::exchange(held_, {});
    }
    // Keep the longest end of the text that could be the beginning of a stop text.
    std::size_t keep = 0;
    for (const std::string& stop : stops_) {
        for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
            if (held_.ends_with(std::string_view(stop).substr(0, n))) {
                keep = n;
                break;
            }
        }
    }
    std::string out = held_.substr(0, held_.size() - keep);
    held_.erase(0, out.size());
    return out;
}

std::string StopText::finish() {
    return std::exchange(held_, {});
}

}  // namespace longview::llm

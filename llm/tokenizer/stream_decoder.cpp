#include "llm/tokenizer/tokenizer.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

/// Moves what is decided from `pending` to the result; an incomplete character at the end stays.
std::string take_complete(std::string& pending) {
    std::string out;
    const char* p = pending.data();
    const char* const end = p + pending.size();
    while (p < end) {
        const Utf8Char c = decode_utf8(p, end);
        if (c.incomplete) break;
        if (c.valid) {
            out.append(p, static_cast<std::size_t>(c.length));
        } else {
            out.append(kReplacement);
        }
        p += c.length;
    }
    pending.erase(0, static_cast<std::size_t>(p - pending.data()));
    return out;
}

}  // namespace

std::string StreamDecoder::push(TokenId id) {
    pending_.append(tokenizer_->bytes(id));
    return take_complete(pending_);
}

std::string StreamDecoder::finish() {
    std::string out = take_complete(pending_);
    if (!pending_.empty()) out.append(kReplacement);
    pending_.clear();
    return out;
}

}  // namespace longview::llm

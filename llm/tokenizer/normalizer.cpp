#include "llm/tokenizer/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/stringpiece.h>

#include <limits>

#include "llm/tokenizer/json_access.h"

namespace longview::llm {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxBytes = std::size_t{4} << 30;
// ICU counts bytes in 32 bits; longer text is cut where normalising cannot reach across.
constexpr std::size_t kIcuBlock = std::size_t{1} << 28;

const icu::Normalizer2* form_of(std::string_view name, std::string_view origin) {
    UErrorCode status = U_ZERO_ERROR;
    const icu::Normalizer2* found = nullptr;
    if (name == "NFC") found = icu::Normalizer2::getNFCInstance(status);
    if (name == "NFD") found = icu::Normalizer2::getNFDInstance(status);
    if (name == "NFKC") found = icu::Normalizer2::getNFKCInstance(status);
    if (name == "NFKD") found = icu::Normalizer2::getNFKDInstance(status);
    if (U_FAILURE(status) || found == nullptr) {
        unsupported(origin, "the normalizer " + quote_for_message(name) + " is not supported");
    }
    return found;
}

std::string normalize(const icu::Normalizer2& form, std::string_view text) {
    std::string out;
    while (!text.empty()) {
        std::size_t length = text.size();
        if (length > kIcuBlock) {
            // ASCII behind ASCII: no form of Unicode composes or reorders across that.
            length = kIcuBlock;
            const auto ascii = [&](std::size_t i) {
                return static_cast<unsigned char>(text[i]) < 0x80;
            };
            while (length > 1 && !(ascii(length - 1) && ascii(length))) --length;
            if (length == 1) {
                throw Error(Category::kInput,
                            "the text has 256 MB without any ASCII character "
                            "pair, which cannot be normalised");
            }
        }
        UErrorCode status = U_ZERO_ERROR;
        icu::StringByteSink<std::string> sink(&out);
        form.normalizeUTF8(0, {text.data(), static_cast<std::int32_t>(length)}, sink, nullptr,
                           status);
        if (U_FAILURE(status)) {
            throw Error(Category::kMemory,
                        std::string("normalising text failed: ") + u_errorName(status));
        }
        text.remove_prefix(length);
    }
    return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
    std::string out;
    for (;;) {
        const std::size_t at = text.find(from);
        out.append(text.substr(0, at));
        if (at == std::string_view::npos) return out;
        out.append(to);
        text.remove_prefix(at + from.size());
        if (out.size() > kMaxBytes) {
            throw Error(Category::kInput, "the normalised text is larger than 4 GiB");
        }
    }
}

}  // namespace

Normalizer::Normalizer(const json& config, std::string_view origin) {
    if (!config.is_null()) add(config, origin, 0);
}

void Normalizer::add(const json& config, std::string_view origin, int depth) {
    if (!config.is_object()) bad_input(origin, "a normalizer must be an object");
    const std::string& type = string_field(config, "type", origin);
    if (type == "Sequence") {
        const json& list = field(config, "normalizers");
        if (!list.is_array() || list.size() > 16 || depth > 4) {
            bad_input(origin, "'normalizers' must be a short list");
        }
        for (const json& step : list) add(step, origin, depth + 1);
    } else if (type == "Replace") {
        const json& pattern = field(config, "pattern");
        if (!pattern.is_object() || !field(pattern, "String").is_string()) {
            unsupported(origin, "the normalizer Replace is supported for a String pattern only");
        }
        Step step;
        step.from = pattern["String"].get<std::string>();
        step.to = string_field(config, "content", origin);
        if (step.from.empty()) unsupported(origin, "the normalizer Replace has an empty pattern");
        steps_.push_back(std::move(step));
    } else {
        steps_.push_back({form_of(type, origin), {}, {}});
    }
}

std::string Normalizer::apply(std::string_view text) const {
    std::string current(text);
    for (const Step& step : steps_) {
        current = step.form != nullptr ? normalize(*step.form, current)
                                       : replace_all(current, step.from, step.to);
    }
    return current;
}

}  // namespace longview::llm

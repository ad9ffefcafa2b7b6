// tokenizer.json: as a whole, and as the pre_tokenizer of a file that is otherwise good. What is
// accepted must encode any text without special tokens, in known or error-reporting ways.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/tokenizer.h"
#include "tests/llm/tiny_tokenizer.h"

namespace {

using longview::llm::TokenId;
using longview::llm::Tokenizer;

void encode(const Tokenizer& tokenizer, std::string_view text) {
    const std::size_t ends[] = {text.size() / 2, text.size()};
    std::vector<std::size_t> settled;
    const auto ids = tokenizer.encode_settled(text, ends, settled);
    for (const TokenId id : ids) {
        if (tokenizer.is_special(id) || !tokenizer.defined(id)) std::abort();
    }
    if (settled.at(0) > settled.at(1) || settled.at(1) > ids.size()) std::abort();
    tokenizer.decode(ids);
}

void run(const std::string& json, std::string_view text) {
    try {
        const auto tokenizer = longview::llm::parse_bpe_tokenizer(json, {}, "tokenizer.json");
        encode(*tokenizer, "It's 2024,\n\n  漢字\xFF <end_of_sentence> ");
        encode(*tokenizer, text);
    } catch (const longview::Error& error) {
        if (error.category() == longview::Category::kBug) std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string good = [] {
        nlohmann::json spec = longview::test::tiny_tokenizer({{"t", "h"}, {"th", "e"}, {" ", " "}});
        spec.erase("pre_tokenizer");
        std::string text = spec.dump();
        text.pop_back();
        return text + ",\"pre_tokenizer\":";
    }();
    // JSON up to the first NUL, text to encode behind it.
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const std::size_t nul = input.find('\0');
    const std::string_view text =
        nul == std::string_view::npos ? input.substr(0, 256) : input.substr(nul + 1);
    const std::string json(input.substr(0, nul));
    run(json, text);
    run(good + json + "}", text);
    return 0;
}

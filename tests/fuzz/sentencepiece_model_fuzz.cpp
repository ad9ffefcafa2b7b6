// SentencePiece models: whatever our reader accepts, the library must load and use.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace longview;
    const std::string_view model(reinterpret_cast<const char*>(data), size);
    try {
        const auto tokenizer = llm::parse_sentencepiece_tokenizer(model, "tokenizer.model");
        const std::string_view texts[] = {
            "bako rital, tensel\n<s></s><unk><tool>  \xE2\x96\x81 \xFF漢🙂",
            model.substr(0, 200)};
        for (const std::string_view text : texts) {
            const auto ids = tokenizer->encode(text);
            for (const llm::TokenId id : ids) {
                if (tokenizer->is_special(id) || !tokenizer->defined(id)) std::abort();
            }
            tokenizer->decode(ids);
        }
    } catch (const Error& error) {
        if (error.category() == Category::kBug) std::abort();
    }
    return 0;
}

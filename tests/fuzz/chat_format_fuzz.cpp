// The chat format with arbitrary text in every place: special tokens stand where the format puts
// them and nowhere else, no byte is lost, and boundaries hold whatever follows.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/chat_format.h"

namespace {

using namespace longview::llm;

void require(bool condition) {
    if (!condition) std::abort();
}

/// Cuts the input into messages: bytes 1 to 4 begin a message of a role, 5 a text part, 6 a
/// picture.
std::vector<ChatMessage> messages_of(std::string_view input) {
    std::vector<ChatMessage> messages;
    for (const char c : input) {
        if (c >= 1 && c <= 4) {
            messages.push_back({static_cast<Role>(c - 1), {}, "f\"\n"});
        } else if (messages.empty()) {
            continue;
        } else if (c == 6) {
            messages.back().parts.push_back({ChatPart::Kind::kImage, {}, 3});
        } else {
            auto& parts = messages.back().parts;
            if (c == 5 || parts.empty() || parts.back().kind == ChatPart::Kind::kImage) {
                parts.push_back({});
            }
            if (c != 5) parts.back().text += c;
        }
    }
    return messages;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const auto tokenizer = load_tokenizer(LONGVIEW_DEMO_MODEL);
    static const ChatFormat format(*tokenizer, *tokenizer->special("<image>"));
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const std::vector<ChatMessage> messages = messages_of(input);
    const EncodedPrompt prompt = format.encode(messages);

    std::size_t pictures = 0;
    for (const ChatMessage& message : messages) {
        pictures += static_cast<std::size_t>(std::count_if(
            message.parts.begin(), message.parts.end(),
            [](const ChatPart& part) { return part.kind == ChatPart::Kind::kImage; }));
    }
    const auto specials = static_cast<std::size_t>(
        std::count_if(prompt.ids.begin(), prompt.ids.end(),
                      [](TokenId id) { return tokenizer->is_special(id); }));
    require(prompt.images.size() == pictures);
    require(specials == messages.size() * 2 + pictures * 3 + 1);
    require(std::is_sorted(prompt.boundaries.begin(), prompt.boundaries.end()));
    require(prompt.boundaries.empty() ||
            prompt.boundaries.back() <= static_cast<std::int64_t>(prompt.ids.size()));

    // As text: what render() says, each special token as its text and a picture once.
    std::string text;
    for (std::size_t i = 0; i < prompt.ids.size(); ++i) {
        const TokenId id = prompt.ids[i];
        text += tokenizer->is_special(id) ? tokenizer->piece(id) : tokenizer->bytes(id);
        if (tokenizer->piece(id) == "<image>" && tokenizer->is_special(id)) i += 2;
    }
    require(text == ChatFormat::render(messages));

    // The first half of the input as a part of its own settles the same ids, whatever follows.
    const std::size_t cut[] = {size / 2};
    std::vector<std::size_t> settled, settled_alone;
    const auto whole = tokenizer->encode_settled(input, cut, settled);
    const auto alone = tokenizer->encode_settled(input.substr(0, cut[0]), cut, settled_alone);
    require(settled == settled_alone && settled[0] <= std::min(whole.size(), alone.size()));
    require(std::equal(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(settled[0]),
                       alone.begin()));
    require(tokenizer->decode(whole) == input);
    return 0;
}

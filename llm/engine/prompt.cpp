#include "llm/engine/prompt.h"

#include <xxhash.h>

#include <array>

namespace longview::llm {
namespace {

std::uint64_t image_digest(const vision::Image& image) {
    const std::array<std::int32_t, 2> size = {image.width, image.height};
    return XXH3_64bits_withSeed(image.rgb.data(), image.rgb.size(),
                                XXH3_64bits(size.data(), sizeof(size)));
}

PromptImage make_image(const Part& part, const vision::PreprocessConfig& preprocess) {
    if (!part.image || part.image->rgb.empty())
        throw Error(Category::kInput, "a picture of the message has no pixels");
    PromptImage image;
    image.image = part.image;
    image.plan = vision::plan_tiles({part.image->width, part.image->height}, preprocess);
    image.digest = image_digest(*part.image);
    return image;
}

PositionKeys position_keys(const Prompt& prompt) {
    PositionKeys keys(prompt.ids.begin(), prompt.ids.end());
    for (const PromptImage& image : prompt.images) {
        for (std::int64_t i = 0; i < image.span.length; ++i) {
            // Ids are below 2^32; the top bit keeps pictures apart from them.
            const std::uint64_t mixed =
                XXH3_64bits_withSeed(&i, sizeof(i), image.digest) | (std::uint64_t{1} << 63);
            keys[static_cast<std::size_t>(image.span.begin + i)] = mixed;
        }
    }
    return keys;
}

}  // namespace

Prompt build_prompt(const std::vector<Message>& messages, const std::vector<ChatTool>& tools,
                    const ChatFormat& format, const vision::PreprocessConfig& preprocess) {
    if (messages.empty()) throw Error(Category::kInput, "there is no message to answer");
    Prompt prompt;
    std::vector<ChatMessage> chat;
    for (const Message& message : messages) {
        ChatMessage& out = chat.emplace_back();
        out.role = message.role;
        out.name = message.name;
        for (const Part& part : message.parts) {
            ChatPart& piece = out.parts.emplace_back();
            if (part.kind == Part::Kind::kText) {
                piece.text = part.text;
                continue;
            }
            prompt.images.push_back(make_image(part, preprocess));
            piece.kind = ChatPart::Kind::kImage;
            piece.image_tokens = prompt.images.back().plan.tokens;
            prompt.image_tokens += piece.image_tokens;
        }
    }
    EncodedPrompt encoded = format.encode(chat, tools);
    LONGVIEW_CHECK(encoded.images.size() == prompt.images.size(),
                   "every picture has its place in the prompt");
    for (std::size_t i = 0; i < prompt.images.size(); ++i) {
        LONGVIEW_CHECK(encoded.images[i].length == prompt.images[i].plan.tokens,
                       "a picture takes the positions that were counted for it");
        prompt.images[i].span = encoded.images[i];
    }
    prompt.ids = std::move(encoded.ids);
    prompt.boundaries = std::move(encoded.boundaries);
    prompt.keys = position_keys(prompt);
    return prompt;
}

}  // namespace longview::llm

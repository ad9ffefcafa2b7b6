// A request's messages as the model reads them: ids, pictures cut into tiles, and a key for every
// position.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "llm/decoder/state_file.h"
#include "llm/engine/engine.h"

namespace longview::llm {

struct PromptImage {
    std::shared_ptr<const vision::Image> image;
    vision::TilePlan plan;
    std::uint64_t digest = 0;  // of size and pixels
    ImageSpan span;
};

struct Prompt {
    std::vector<TokenId> ids;
    PositionKeys keys;  // [ids]
    std::vector<PromptImage> images;
    std::vector<std::int64_t> boundaries;
    std::int64_t image_tokens = 0;
};

/// Errors: kInput for an empty prompt, a picture without pixels, or one of an impossible shape.
Prompt build_prompt(const std::vector<Message>& messages, const std::vector<ChatTool>& tools,
                    const ChatFormat& format, const vision::PreprocessConfig& preprocess);

}  // namespace longview::llm

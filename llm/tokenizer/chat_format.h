// The chat format of MiniMax-VL-01 (model-spec 8): messages to one row of token ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "llm/tokenizer/tokenizer.h"

namespace longview::llm {

enum class Role { kSystem, kUser, kAssistant, kFunction };

/// A piece of a message as the chat format sees it.
struct ChatPart {
    enum class Kind { kText, kImage } kind = Kind::kText;
    std::string text;               // kText
    std::int64_t image_tokens = 0;  // kImage: positions the picture takes
};

struct ChatMessage {
    Role role = Role::kUser;
    std::vector<ChatPart> parts;
    std::string name;  // kFunction: the function that answered
};

/// Function definition offered to the model, as JSON text.
struct ChatTool {
    std::string json;
};

/// Where a picture's positions lie in the ids.
struct ImageSpan {
    std::int64_t begin = 0;
    std::int64_t length = 0;
};

struct EncodedPrompt {
    std::vector<TokenId> ids;
    std::vector<ImageSpan> images;  // in order of appearance
    /// Positions after which the state is worth keeping: the end of each message and of each
    /// picture and long text part, ascending, the last one at most ids.size().
    std::vector<std::int64_t> boundaries;
};

class ChatFormat {
  public:
    /// Errors: kUnsupported naming the special token that the tokenizer lacks.
    ChatFormat(const Tokenizer& tokenizer, TokenId image_token);

    /// Ids of the whole prompt. Text parts can never become special tokens.
    EncodedPrompt encode(const std::vector<ChatMessage>& messages,
                         const std::vector<ChatTool>& tools = {},
                         bool generation_prompt = true) const;

    /// The same as text, with "<image>" once for each picture; for display and tests.
    static std::string render(const std::vector<ChatMessage>& messages,
                              const std::vector<ChatTool>& tools = {},
                              bool generation_prompt = true);

  private:
    const Tokenizer* tokenizer_;
    TokenId begin_;
    TokenId end_;
    TokenId image_;
};

}  // namespace longview::llm

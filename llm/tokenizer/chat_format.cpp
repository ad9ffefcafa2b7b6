#include "llm/tokenizer/chat_format.h"

#include <algorithm>
#include <array>

#include "kernels/runtime/error.h"

namespace longview::llm {
namespace {

constexpr std::string_view kBegin = "<beginning_of_sentence>";
constexpr std::string_view kEnd = "<end_of_sentence>";
constexpr std::string_view kImage = "<image>";
constexpr std::string_view kAnswerHeader = "ai name=assistant\n";

// A text part shorter than this is read again rather than kept as a state of its own.
constexpr std::int64_t kLongPartTokens = 256;

std::string_view header_of(Role role) {
    switch (role) {
        case Role::kSystem:
            return "system ai_setting=assistant\n";
        case Role::kUser:
            return "user name=user\n";
        case Role::kAssistant:
            return kAnswerHeader;
        case Role::kFunction:
            return "system function_response=functions\n";
    }
    return {};
}

/// The inside of a JSON string. Bytes from 0x20 on stay as they are.
std::string json_escaped(std::string_view text) {
    static constexpr std::string_view kHex = "0123456789abcdef";
    std::string out;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (c == '\n') {
            out += "\\n";
        } else if (byte < 0x20) {
            out += "\\u00";
            out += kHex[byte >> 4];
            out += kHex[byte & 15];
        } else {
            out += c;
        }
    }
    return out;
}

/// Walks over a prompt in order. `Sink` has special(text), text(text), image(tokens), end_of_part()
/// and end_of_message().
template <typename Sink>
void walk(const std::vector<ChatMessage>& messages, const std::vector<ChatTool>& tools,
          bool generation_prompt, Sink& sink) {
    const auto finish_message = [&sink] {
        sink.special(kEnd);
        sink.text("\n");
        sink.end_of_message();
    };
    for (const ChatMessage& message : messages) {
        sink.special(kBegin);
        sink.text(header_of(message.role));
        // The answer of a function is put inside a JSON object; its text is JSON already.
        const bool function = message.role == Role::kFunction;
        if (function)
            sink.text("{\"name\": \"" + json_escaped(message.name) + "\", \"response\": ");
        for (const ChatPart& part : message.parts) {
            if (part.kind == ChatPart::Kind::kImage) {
                sink.image(part.image_tokens);
            } else {
                sink.text(part.text);
                sink.end_of_part();
            }
        }
        if (function) sink.text("}");
        finish_message();
    }
    // The published template puts tools here, though its description says behind the system text
    // (model-spec D11).
    for (const ChatTool& tool : tools) {
        sink.special(kBegin);
        sink.text("system function_setting=functions\n");
        sink.text(tool.json);
        finish_message();
    }
    if (generation_prompt) {
        sink.special(kBegin);
        sink.text(kAnswerHeader);
    }
}

struct TextSink {
    std::string out;
    void special(std::string_view text) { out += text; }
    void text(std::string_view text) { out += text; }
    void image(std::int64_t) { out += kImage; }
    void end_of_part() {}
    void end_of_message() {}
};

/// Text between special tokens is collected and encoded as one string, as the rendered prompt
/// would be.
class IdSink {
  public:
    IdSink(const Tokenizer& tokenizer, TokenId begin, TokenId end, TokenId image)
        : tokenizer_(tokenizer), begin_(begin), end_(end), image_(image) {}

    void special(std::string_view text) {
        flush();
        prompt_.ids.push_back(text == kBegin ? begin_ : end_);
    }
    void text(std::string_view text) { run_ += text; }
    void image(std::int64_t tokens) {
        if (tokens <= 0) {
            throw Error(Category::kInput, "a picture takes " + std::to_string(tokens) +
                                              " tokens; expected at least one");
        }
        flush();
        prompt_.images.push_back({position(), tokens});
        prompt_.ids.insert(prompt_.ids.end(), static_cast<std::size_t>(tokens), image_);
        boundary(position());
    }
    void end_of_part() { part_ends_.push_back(run_.size()); }
    void end_of_message() {
        flush();
        boundary(position());
    }
    EncodedPrompt take() {
        flush();
        return std::move(prompt_);
    }

  private:
    std::int64_t position() const { return static_cast<std::int64_t>(prompt_.ids.size()); }

    void boundary(std::int64_t at) {
        auto& all = prompt_.boundaries;
        if (all.empty() || all.back() < at) all.push_back(at);
    }

    /// Encodes the collected text. The ids up to the end of a long part are the same whatever part
    /// comes next, so a second question about a document finds them again.
    void flush() {
        const std::int64_t start = position();
        std::vector<std::size_t> settled;
        const std::vector<TokenId> ids = tokenizer_.encode_settled(run_, part_ends_, settled);
        std::int64_t part_start = start;
        for (const std::size_t count : settled) {
            const std::int64_t at = start + static_cast<std::int64_t>(count);
            if (at - part_start >= kLongPartTokens) boundary(at);
            part_start = at;
        }
        prompt_.ids.insert(prompt_.ids.end(), ids.begin(), ids.end());
        run_.clear();
        part_ends_.clear();
    }

    const Tokenizer& tokenizer_;
    TokenId begin_;
    TokenId end_;
    TokenId image_;
    EncodedPrompt prompt_;
    std::string run_;
    std::vector<std::size_t> part_ends_;  // offsets in run_
};

TokenId need_special(const Tokenizer& tokenizer, std::string_view text) {
    const auto id = tokenizer.special(text);
    if (!id) {
        throw Error(Category::kUnsupported,
                    "the tokenizer has no special token " + std::string(text) +
                        ", which the chat format of MiniMax-VL-01 needs; is this another model?");
    }
    return *id;
}

}  // namespace

ChatFormat::ChatFormat(const Tokenizer& tokenizer, TokenId image_token)
    : tokenizer_(&tokenizer),
      begin_(need_special(tokenizer, kBegin)),
      end_(need_special(tokenizer, kEnd)),
      image_(image_token) {
    if (!tokenizer.is_special(image_token)) {
        throw Error(Category::kUnsupported,
                    "image_token_index " + std::to_string(image_token) +
                        " of config.json is no special token of the tokenizer (expected " +
                        std::string(kImage) + "); the files do not belong together");
    }
}

EncodedPrompt ChatFormat::encode(const std::vector<ChatMessage>& messages,
                                 const std::vector<ChatTool>& tools, bool generation_prompt) const {
    IdSink sink(*tokenizer_, begin_, end_, image_);
    walk(messages, tools, generation_prompt, sink);
    return sink.take();
}

std::string ChatFormat::render(const std::vector<ChatMessage>& messages,
                               const std::vector<ChatTool>& tools, bool generation_prompt) {
    TextSink sink;
    walk(messages, tools, generation_prompt, sink);
    return std::move(sink.out);
}

}  // namespace longview::llm

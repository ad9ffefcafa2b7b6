#include "app/core/conversation_file.h"

#include <cstdint>
#include <span>
#include <utility>

#include "app/core/base64.h"
#include "app/core/files.h"
#include "app/core/messages_json.h"
#include "app/core/png.h"
#include "kernels/runtime/error.h"
#include "vision/image/image.h"

namespace longview::app {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* kFormat = "longview-conversation";
constexpr int kVersion = 1;
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 30U;

ordered_json encode_part(const llm::Part& part) {
    if (part.kind == llm::Part::Kind::kText) return {{"type", "text"}, {"text", part.text}};
    return {{"type", "image"}, {"png", base64_encode(encode_png(*part.image))}};
}

llm::Part decode_part(const json& part, const std::string& origin) {
    const std::string& type = string_member(part, "type", origin);
    if (type == "text") return llm::text_part(string_member(part, "text", origin));
    if (type != "image") {
        throw Error(Category::kInput, origin + ": unknown part type \"" + type + "\".");
    }
    const std::string png = base64_decode(string_member(part, "png", origin));
    return llm::image_part(
        vision::decode_image(std::as_bytes(std::span(png)), "picture in " + origin));
}

const json& array_member(const json& object, const char* key, const std::string& origin) {
    const auto found = object.find(key);
    if (found == object.end() || !found->is_array()) {
        throw Error(Category::kInput, origin + ": the list \"" + key + "\" is missing.");
    }
    return *found;
}

}  // namespace

std::string encode_conversation(const Conversation& conversation) {
    ordered_json messages = ordered_json::array();
    for (const llm::Message& message : conversation.messages) {
        ordered_json parts = ordered_json::array();
        for (const llm::Part& part : message.parts) parts.push_back(encode_part(part));
        ordered_json entry = {{"role", role_name(message.role)}};
        if (!message.name.empty()) entry["name"] = message.name;
        entry["content"] = std::move(parts);
        messages.push_back(std::move(entry));
    }
    const ordered_json file = {{"format", kFormat},
                               {"version", kVersion},
                               {"model", conversation.model},
                               {"fingerprint", conversation.fingerprint},
                               {"messages", std::move(messages)}};
    return file.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

Conversation decode_conversation(std::string_view text, const std::string& origin) {
    const json file = parse_json(text, origin);
    const json version = file.is_object() ? file.value("version", json()) : json();
    if (!file.is_object() || file.value("format", json()) != kFormat ||
        !version.is_number_unsigned()) {
        throw Error(Category::kInput, origin + " is not a saved conversation.");
    }
    if (version != kVersion) {
        throw Error(Category::kUnsupported, origin + " was saved in version " + version.dump() +
                                                " of the format; this program reads version 1.");
    }
    Conversation conversation;
    conversation.model = string_member(file, "model", origin);
    conversation.fingerprint = string_member(file, "fingerprint", origin);
    for (const json& entry : array_member(file, "messages", origin)) {
        llm::Message message;
        message.role = parse_role(string_member(entry, "role", origin), origin);
        if (entry.contains("name")) message.name = string_member(entry, "name", origin);
        for (const json& part : array_member(entry, "content", origin)) {
            message.parts.push_back(decode_part(part, origin));
        }
        conversation.messages.push_back(std::move(message));
    }
    return conversation;
}

void save_conversation(const Conversation& conversation, const std::filesystem::path& path) {
    write_file_atomically(path, encode_conversation(conversation));
}

Conversation load_conversation(const std::filesystem::path& path) {
    return decode_conversation(read_file(path, kMaxBytes), path.string());
}

std::filesystem::path state_path(const std::filesystem::path& conversation) {
    return conversation.string() + ".state";
}

}  // namespace longview::app

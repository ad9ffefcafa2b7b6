#include "app/core/messages_json.h"

#include <array>

#include "app/core/files.h"
#include "kernels/runtime/error.h"
#include "vision/image/image.h"

namespace longview::app {

using nlohmann::json;

namespace {

constexpr int kMaxDepth = 64;
constexpr std::string_view kDocumentMark = "{document}";

[[noreturn]] void refuse(const std::string& origin, const std::string& what) {
    throw Error(Category::kInput, origin + ": " + what + ".");
}

std::string with_document(std::string text, const std::string* document) {
    if (document == nullptr) return text;
    const std::size_t at = text.find(kDocumentMark);
    if (at != std::string::npos) text.replace(at, kDocumentMark.size(), *document);
    return text;
}

}  // namespace

json parse_json(std::string_view text, const std::string& origin) {
    const auto limit_depth = [&](int depth, json::parse_event_t, json&) {
        if (depth > kMaxDepth) refuse(origin, "nested deeper than 64 levels");
        return true;
    };
    try {
        return json::parse(text, limit_depth);
    } catch (const json::parse_error& error) {
        refuse(origin, "not valid JSON (byte " + std::to_string(error.byte) + ")");
    }
}

json read_json(const std::filesystem::path& path, std::uint64_t max_bytes) {
    return parse_json(read_file(path, max_bytes), path.string());
}

const char* role_name(llm::Role role) {
    switch (role) {
        case llm::Role::kSystem:
            return "system";
        case llm::Role::kUser:
            return "user";
        case llm::Role::kAssistant:
            return "assistant";
        case llm::Role::kFunction:
            return "function";
    }
    return "user";
}

llm::Role parse_role(const std::string& name, const std::string& origin) {
    for (const llm::Role role :
         {llm::Role::kSystem, llm::Role::kUser, llm::Role::kAssistant, llm::Role::kFunction}) {
        if (name == role_name(role)) return role;
    }
    refuse(origin, "unknown role \"" + name + "\"");
}

const std::string& string_member(const json& object, const char* key, const std::string& origin) {
    const auto found = object.is_object() ? object.find(key) : object.end();
    if (!object.is_object() || found == object.end() || !found->is_string()) {
        refuse(origin, std::string("the text \"") + key + "\" is missing");
    }
    return found->get_ref<const std::string&>();
}

std::vector<llm::Message> parse_messages(const json& messages,
                                         const std::vector<std::filesystem::path>& images,
                                         const std::string* document, const std::string& origin) {
    if (!messages.is_array() || messages.empty()) refuse(origin, "there are no messages");
    std::vector<llm::Message> result;
    std::size_t used = 0;
    for (const json& entry : messages) {
        llm::Message message;
        message.role = parse_role(string_member(entry, "role", origin), origin);
        const json content = entry.value("content", json());
        if (content.is_string()) {
            message.parts.push_back(
                llm::text_part(with_document(content.get<std::string>(), document)));
        } else if (!content.is_array()) {
            refuse(origin, "a message has no \"content\"");
        } else {
            for (const json& part : content) {
                const std::string& type = string_member(part, "type", origin);
                if (type == "text") {
                    message.parts.push_back(llm::text_part(
                        with_document(string_member(part, "text", origin), document)));
                } else if (type == "image") {
                    if (used == images.size()) refuse(origin, "a picture has no file");
                    message.parts.push_back(llm::image_part(vision::load_image(images[used++])));
                } else {
                    refuse(origin, "unknown part type \"" + type + "\"");
                }
            }
        }
        result.push_back(std::move(message));
    }
    if (used != images.size()) {
        refuse(origin, std::to_string(images.size()) +
                           " pictures are listed but the messages use " + std::to_string(used));
    }
    return result;
}

}  // namespace longview::app

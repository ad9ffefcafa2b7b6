// A conversation in one file: texts and pictures, JSON. What the model remembers of it may lie
// beside it (FILE.state, written by the engine). Used by app/cli.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "llm/engine/engine.h"

namespace longview::app {

struct Conversation {
    std::string model;        // folder name of the model that answered
    std::string fingerprint;  // and its identity
    std::vector<llm::Message> messages;
};

/// Pictures become PNG in base64.
std::string encode_conversation(const Conversation& conversation);
/// Errors: kInput naming `origin` and what is wrong, kUnsupported for a newer version.
Conversation decode_conversation(std::string_view text, const std::string& origin);

/// Writes atomically. Errors: kIo, kNotFound.
void save_conversation(const Conversation& conversation, const std::filesystem::path& path);
/// Errors: as decode_conversation and read_file; files over 1 GiB are refused.
Conversation load_conversation(const std::filesystem::path& path);

/// Where the model's memory of a conversation lies: FILE.state.
std::filesystem::path state_path(const std::filesystem::path& conversation);

}  // namespace longview::app

// Small tokenizer.json files made in the test.
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/tokenizer/utf8.h"

namespace longview::test {

/// Bytes as tokenizer.json writes them (GPT-2's alphabet).
inline std::string byte_level(std::string_view bytes) {
    static const std::array<char32_t, 256> alphabet = [] {
        std::array<char32_t, 256> result{};
        char32_t free = 0x100;
        for (char32_t b = 0; b < 256; ++b) {
            const bool prints = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
            result[b] = prints ? b : free++;
        }
        return result;
    }();
    std::string out;
    for (const char c : bytes) llm::append_utf8(out, alphabet[static_cast<unsigned char>(c)]);
    return out;
}

inline nlohmann::json byte_level_stage() {
    return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
}
inline nlohmann::json split_stage(std::string_view regex) {
    return {{"type", "Split"},
            {"pattern", {{"Regex", regex}}},
            {"behavior", "Isolated"},
            {"invert", false}};
}
inline nlohmann::json added_token(int id, std::string_view content, bool special) {
    return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
            {"rstrip", false}, {"normalized", false}, {"special", special}};
}

/// The 256 bytes in order as ids 0 to 255, the results of the merges behind them, then
/// <end_of_sentence>. Merges are pairs of raw byte strings.
inline nlohmann::json tiny_tokenizer(
    const std::vector<std::pair<std::string, std::string>>& merges = {}) {
    nlohmann::json vocab = nlohmann::json::object();
    for (int b = 0; b < 256; ++b) vocab[byte_level(std::string(1, static_cast<char>(b)))] = b;
    nlohmann::json list = nlohmann::json::array();
    for (const auto& [left, right] : merges) {
        list.push_back({byte_level(left), byte_level(right)});
        const std::string result = byte_level(left + right);
        if (!vocab.contains(result)) vocab[result] = vocab.size();
    }
    const int end = static_cast<int>(vocab.size());
    return {{"version", "1.0"},
            {"added_tokens", {added_token(end, "<end_of_sentence>", true)}},
            {"normalizer", nullptr},
            {"pre_tokenizer", byte_level_stage()},
            {"post_processor", nullptr},
            {"decoder", {{"type", "ByteLevel"}}},
            {"model", {{"type", "BPE"}, {"dropout", nullptr}, {"vocab", vocab}, {"merges", list}}}};
}

}  // namespace longview::test

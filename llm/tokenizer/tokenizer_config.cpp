#include "llm/tokenizer/tokenizer_config.h"

#include <charconv>

#include "llm/tokenizer/json_access.h"

namespace longview::llm {
namespace {

using nlohmann::json;

json parse_side_file(const SideFile& file) {
    if (file.text.empty()) return json::object();
    json parsed = parse_strict_json(file.text, JsonLimits{}, file.origin);
    if (!parsed.is_object()) bad_input(file.origin, "must be one JSON object");
    return parsed;
}

void check_added_tokens(const json& decoder, std::string_view origin, const BpeVocab& vocab) {
    if (decoder.is_null()) return;
    if (!decoder.is_object()) bad_input(origin, "added_tokens_decoder must be an object");
    for (const auto& [key, token] : decoder.items()) {
        TokenId id = -1;
        const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
        if (error != std::errc() || end != key.data() + key.size() || !token.is_object()) {
            bad_input(origin, "added_tokens_decoder has the entry " + quote_for_message(key) +
                                  "; expected a token by its id");
        }
        const std::string& content = string_field(token, "content", origin);
        const bool special = bool_field(token, "special", false, origin);
        if (!vocab.defined(id) || vocab.piece(id) != content || vocab.is_special(id) != special) {
            bad_input(origin, "says that token " + std::to_string(id) + " is " +
                                  quote_for_message(content) + (special ? ", special" : "") +
                                  "; tokenizer.json says " +
                                  (vocab.defined(id) ? quote_for_message(vocab.piece(id))
                                                     : std::string("it does not exist")) +
                                  (vocab.is_special(id) ? ", special" : "") +
                                  ". The two files do not belong together");
        }
    }
}

/// eos_token, either the text or an object with the text.
std::optional<std::string> end_token_text(const json& config, std::string_view origin) {
    const json& token = field(config, "eos_token");
    if (token.is_null()) return std::nullopt;
    if (token.is_string()) return token.get<std::string>();
    if (token.is_object()) return string_field(token, "content", origin);
    bad_input(origin, "eos_token must be a text, but is " + describe_json(token));
}

/// eos_token_id: a number, or a list whose first number counts.
std::optional<TokenId> end_token_id(const json& config, std::string_view origin,
                                    const BpeVocab& vocab) {
    const json& value = field(config, "eos_token_id");
    if (value.is_null()) return std::nullopt;
    const json& id = value.is_array() && !value.empty() ? value[0] : value;
    if (!id.is_number_unsigned() ||
        id.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocab.size()) ||
        !vocab.defined(id.get<TokenId>())) {
        bad_input(origin,
                  "eos_token_id is " + describe_json(id) + ", which is no token of tokenizer.json");
    }
    return id.get<TokenId>();
}

}  // namespace

TokenId read_end_of_answer(const SideFile& tokenizer_config, const SideFile& generation_config,
                           const BpeVocab& vocab) {
    const json config = parse_side_file(tokenizer_config);
    check_added_tokens(field(config, "added_tokens_decoder"), tokenizer_config.origin, vocab);
    if (const auto text = end_token_text(config, tokenizer_config.origin)) {
        if (const auto id = vocab.special(*text)) return *id;
        if (const TokenId id = vocab.find_piece(*text); id >= 0) return id;
        bad_input(tokenizer_config.origin, "eos_token is " + quote_for_message(*text) +
                                               ", which is no token of tokenizer.json");
    }
    const json generation = parse_side_file(generation_config);
    if (const auto id = end_token_id(generation, generation_config.origin, vocab)) return *id;
    if (const auto id = vocab.special("<end_of_sentence>")) return *id;
    unsupported(tokenizer_config.origin,
                "nothing says which token ends an answer: expected eos_token here, eos_token_id in "
                "generation_config.json, or a special token <end_of_sentence>");
}

}  // namespace longview::llm

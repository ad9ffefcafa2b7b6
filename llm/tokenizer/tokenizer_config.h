// What the files beside tokenizer.json say about it. Private to llm/tokenizer.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "llm/tokenizer/bpe_vocab.h"

namespace longview::llm {

/// A file of the checkpoint folder: its bytes, empty where it does not exist, and its name for
/// errors.
struct SideFile {
    std::string_view text;
    std::string_view origin;
};

/// Id of the token that ends an answer, by eos_token of tokenizer_config.json, else eos_token_id
/// of generation_config.json, else <end_of_sentence>. Also checks that added_tokens_decoder of
/// tokenizer_config.json says the same as tokenizer.json.
/// Errors: kInput naming the file and the disagreement; kUnsupported when nothing names the token.
TokenId read_end_of_answer(const SideFile& tokenizer_config, const SideFile& generation_config,
                           const BpeVocab& vocab);

}  // namespace longview::llm

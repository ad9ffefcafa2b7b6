// model.safetensors.index.json: which tensor lies in which file. Private to llm/checkpoint.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace longview::llm {

struct ShardIndex {
    std::map<std::string, std::string, std::less<>> weight_map;  // tensor name -> file name
    std::optional<std::uint64_t> total_size;                     // bytes, where the index says it
};

/// File names are checked to be plain names inside the folder. `origin` stands in errors.
/// Errors: kInput.
ShardIndex parse_shard_index(std::string_view text, std::string_view origin);

}  // namespace longview::llm

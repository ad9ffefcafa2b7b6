#include "llm/checkpoint/shard_index.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "llm/checkpoint/json_fields.h"
#include "llm/checkpoint/safetensors.h"
#include "llm/checkpoint/strict_json.h"

namespace longview::llm {
namespace {

constexpr JsonLimits kIndexLimits{
    .max_bytes = kMaxHeaderBytes, .max_depth = 8, .max_items = 3 * kMaxTensorsPerFile};
constexpr std::size_t kMaxFileNameBytes = 128;

bool is_plain_file_name(std::string_view name) {
    const auto is_allowed = [](char c) {
        return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
               c == '.' || c == '_' || c == '-';
    };
    return !name.empty() && name.size() <= kMaxFileNameBytes && name != "." && name != ".." &&
           std::all_of(name.begin(), name.end(), is_allowed);
}

/// Some writers store the sum as a float, or wrongly; it decides nothing.
std::optional<std::uint64_t> read_total_size(const nlohmann::json& document) {
    const auto metadata = document.find("metadata");
    if (metadata == document.end() || !metadata->is_object()) return std::nullopt;
    const auto total = metadata->find("total_size");
    if (total == metadata->end()) return std::nullopt;
    if (total->is_number_unsigned()) return total->get<std::uint64_t>();
    if (!total->is_number_float()) return std::nullopt;
    const double value = total->get<double>();
    if (!(value >= 0.0 && value < 9e18)) return std::nullopt;
    return static_cast<std::uint64_t>(value);
}

}  // namespace

ShardIndex parse_shard_index(std::string_view text, std::string_view origin) {
    const nlohmann::json document = parse_strict_json(text, kIndexLimits, origin);
    const Fields fields(document, std::string(origin));
    const nlohmann::json& map = fields.require("weight_map");
    if (!map.is_object()) {
        fields.refuse("weight_map", "is " + describe_json(map) + "; an object is expected");
    }
    ShardIndex index;
    for (const auto& [tensor, file] : map.items()) {
        const bool is_name =
            file.is_string() && is_plain_file_name(file.get_ref<const std::string&>());
        if (!is_name) {
            fields.refuse("weight_map", "places " + quote_for_message(tensor, 120) + " in " +
                                            describe_json(file) +
                                            ", which is not a plain file name of this folder");
        }
        index.weight_map.emplace_hint(index.weight_map.end(), tensor, file.get<std::string>());
    }
    index.total_size = read_total_size(document);
    return index;
}

}  // namespace longview::llm

#include "llm/checkpoint/json_fields.h"

#include <cmath>
#include <utility>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/strict_json.h"

namespace longview::llm {
namespace {

using nlohmann::json;

std::string plain(double value) {
    return json(value).dump();
}

std::string show(const json& value) {
    // Short lists of scalars, such as [0], say more in full.
    if (!value.is_array() || value.size() > 4) return describe_json(value);
    std::string out = "[";
    for (const json& item : value) out += (out.size() > 1 ? ", " : "") + describe_json(item);
    return out + "]";
}

}  // namespace

Fields::Fields(const json& value, std::string file, std::string path)
    : value_(&value), file_(std::move(file)), path_(std::move(path)) {
    if (value.is_object()) return;
    const std::string name = path_.empty() ? "the file" : path_.substr(0, path_.size() - 1);
    throw Error(Category::kInput,
                file_ + ": " + name + " is " + describe_json(value) + "; an object is expected",
                {{"file", file_}});
}

const json* Fields::find(std::string_view key) const {
    const auto found = value_->find(key);
    return found == value_->end() || found->is_null() ? nullptr : &*found;
}

const json& Fields::require(std::string_view key) const {
    const auto found = value_->find(key);
    if (found == value_->end()) {
        refuse(key,
               "is missing; every value of the published configuration is needed, none is "
               "assumed: download the file again");
    }
    return *found;
}

Fields Fields::object(std::string_view key) const {
    return {require(key), file_, path_ + std::string(key) + "."};
}

const json& Fields::list(std::string_view key) const {
    const json& value = require(key);
    if (!value.is_array()) refuse(key, "is " + show(value) + "; a list is expected");
    return value;
}

std::string Fields::text(std::string_view key) const {
    const json& value = require(key);
    if (!value.is_string()) refuse(key, "is " + show(value) + "; a string is expected");
    return value.get<std::string>();
}

int Fields::integer(std::string_view key, int low, int high) const {
    const json& value = require(key);
    const int found = integer_or_below(value, low, high);
    if (found < low) {
        refuse(key, "is " + show(value) + "; a whole number from " + std::to_string(low) + " to " +
                        std::to_string(high) + " is expected");
    }
    return found;
}

double Fields::number(std::string_view key, double low, double high) const {
    const json& value = require(key);
    const double found = value.is_number() ? value.get<double>() : std::nan("");
    if (!(found > low && found < high)) {
        refuse(key, "is " + show(value) + "; a number above " + plain(low) + " and below " +
                        plain(high) + " is expected");
    }
    return found;
}

float Fields::real(std::string_view key, double low, double high) const {
    const auto found = static_cast<float>(number(key, low, high));
    if (!(found > low)) refuse(key, "is too close to " + plain(low) + " for 32-bit arithmetic");
    return found;
}

void Fields::only(std::string_view key, const json& supported) const {
    const json& value = require(key);
    if (value == supported) return;
    if (supported.is_null()) {
        unsupported(key, "is " + show(value) + "; models that use it are not supported");
    }
    unsupported(key, "is " + show(value) + "; this program computes " + show(supported) + " only");
}

void Fields::only_if_present(std::string_view key, const json& supported) const {
    if (find(key) != nullptr) only(key, supported);
}

void Fields::refuse(std::string_view key, const std::string& cause) const {
    const std::string name = path_ + std::string(key);
    throw Error(Category::kInput, file_ + ": " + name + " " + cause,
                {{"file", file_}, {"key", name}});
}

void Fields::unsupported(std::string_view key, const std::string& cause) const {
    const std::string name = path_ + std::string(key);
    throw Error(Category::kUnsupported, file_ + ": " + name + " " + cause,
                {{"file", file_}, {"key", name}});
}

int integer_or_below(const json& value, int low, int high) {
    if (value.is_number_unsigned()) {
        const auto number = value.get<json::number_unsigned_t>();
        const bool fits = high >= 0 && number <= static_cast<json::number_unsigned_t>(high);
        return fits && static_cast<int>(number) >= low ? static_cast<int>(number) : low - 1;
    }
    if (!value.is_number_integer()) return low - 1;
    const auto number = value.get<json::number_integer_t>();
    return number >= low && number <= high ? static_cast<int>(number) : low - 1;
}

}  // namespace longview::llm

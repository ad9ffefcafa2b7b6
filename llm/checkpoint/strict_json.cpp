#include "llm/checkpoint/strict_json.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/strict_sax.h"
#include "llm/checkpoint/wrong_content.h"

namespace longview::llm {
namespace {

using nlohmann::json;

/// Bytes of the valid UTF-8 sequence at the start of `text`; 0 when there is none.
std::size_t utf8_length(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return 1;
    const std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) return 0;
    }
    // Overlong forms, surrogates, and code points beyond U+10FFFF.
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;
    if (lead == 0xED && byte(1) > 0x9F) return 0;
    if (lead == 0xF0 && byte(1) < 0x90) return 0;
    if (lead == 0xF4 && byte(1) > 0x8F) return 0;
    return length;
}

std::string printable(std::string_view text, std::size_t max_bytes) {
    std::string out;
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        const std::size_t taken = std::max<std::size_t>(length, 1);
        if (out.size() + taken > max_bytes) return out + "...";
        const auto first = static_cast<unsigned char>(text[0]);
        if (length == 0 || (length == 1 && (first < 0x20 || first == 0x7F))) {
            out += '?';
        } else {
            out += text.substr(0, length);
        }
        text.remove_prefix(taken);
    }
    return out;
}

std::string place(std::string_view text, std::size_t position) {
    const std::string_view before = text.substr(0, std::min(position, text.size()));
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t newline = before.rfind('\n');
    const std::size_t column =
        newline == std::string_view::npos ? before.size() : before.size() - newline - 1;
    return "line " + std::to_string(line) + ", column " + std::to_string(column);
}

/// Builds the document while the base class counts.
class DomBuilder final : public StrictSax {
  public:
    using StrictSax::StrictSax;

    json take() { return std::move(root_); }

    bool null() override { return put(nullptr); }
    bool boolean(bool value) override { return put(value); }
    bool number_integer(json::number_integer_t value) override { return put(value); }
    bool number_unsigned(json::number_unsigned_t value) override { return put(value); }
    bool number_float(json::number_float_t value, const std::string&) override {
        return put(value);
    }
    bool string(std::string& value) override { return put(std::move(value)); }
    bool binary(json::binary_t&) override { return false; }  // not part of JSON text
    bool start_object(std::size_t) override { return open(json::object()); }
    bool start_array(std::size_t) override { return open(json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }

    bool key(std::string& name) override {
        count();
        auto& object = open_.back()->get_ref<json::object_t&>();
        const auto [position, is_new] = object.emplace(name, nullptr);
        if (!is_new) refuse("the key " + quote_for_message(name) + " appears twice in one object");
        slot_ = &position->second;
        return true;
    }

  private:
    bool put(json value) {
        count();
        place_value(std::move(value));
        return true;
    }
    bool open(json value) {
        enter();
        count();
        open_.push_back(place_value(std::move(value)));
        return true;
    }
    bool close() {
        leave();
        open_.pop_back();
        return true;
    }
    // Containers stay where they are while they are open: a list only grows after the element
    // before is closed.
    json* place_value(json value) {
        json* target = &root_;
        if (!open_.empty() && open_.back()->is_array()) {
            open_.back()->push_back(nullptr);
            target = &open_.back()->back();
        } else if (!open_.empty()) {
            target = slot_;
        }
        *target = std::move(value);
        return target;
    }

    json root_;
    std::vector<json*> open_;
    json* slot_ = nullptr;  // value of the key read last
};

}  // namespace

bool StrictSax::parse_error(std::size_t position, const std::string&,
                            const nlohmann::json::exception& error) {
    // nlohmann's text is "[id] parse error at line 1, column 2: cause; last read: 'token'".
    std::string_view cause = error.what();
    if (const auto id_end = cause.find("] "); id_end != std::string_view::npos) {
        cause.remove_prefix(id_end + 2);
    }
    if (cause.starts_with("parse error")) {
        const auto colon = cause.find(": ");
        if (colon != std::string_view::npos) cause.remove_prefix(colon + 2);
    }
    refuse("not valid JSON at " + place(text_, position) + ": " + printable(cause, 160));
}

void StrictSax::enter() {
    if (++depth_ > limits_.max_depth) {
        refuse("lists and objects are nested deeper than " + std::to_string(limits_.max_depth) +
               " levels");
    }
}

void StrictSax::count() {
    if (++items_ > limits_.max_items) {
        refuse("holds more than " + std::to_string(limits_.max_items) + " keys and values");
    }
}

void StrictSax::refuse(const std::string& cause) const {
    throw Error(Category::kInput, origin_ + ": " + cause, {{"file", origin_}});
}

void run_strict_sax(std::string_view text, const JsonLimits& limits, std::string_view origin,
                    StrictSax& handler) {
    const auto refuse = [&](const std::string& cause) {
        throw Error(Category::kInput, std::string(origin) + ": " + cause,
                    {{"file", std::string(origin)}});
    };
    if (text.size() > limits.max_bytes) {
        refuse("has " + std::to_string(text.size()) + " bytes; the limit is " +
               std::to_string(limits.max_bytes));
    }
    if (const std::string wrong = name_wrong_content(text.substr(0, kContentSniffBytes));
        !wrong.empty()) {
        throw Error(Category::kInput, std::string(origin) + " " + wrong,
                    {{"file", std::string(origin)}});
    }
    // The lexer takes NUL for the end of the text and would ignore what follows.
    if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
        refuse("not valid JSON: NUL byte at " + place(text, nul + 1));
    }
    if (!json::sax_parse(text.begin(), text.end(), &handler, json::input_format_t::json, true)) {
        refuse("not valid JSON");
    }
}

nlohmann::json parse_strict_json(std::string_view text, const JsonLimits& limits,
                                 std::string_view origin) {
    DomBuilder builder(text, limits, origin);
    run_strict_sax(text, limits, origin, builder);
    return builder.take();
}

std::string quote_for_message(std::string_view text, std::size_t max_bytes) {
    return '"' + printable(text, max_bytes) + '"';
}

std::string describe_json(const nlohmann::json& value) {
    if (value.is_string()) return quote_for_message(value.get_ref<const std::string&>());
    if (value.is_array()) return "a list of " + std::to_string(value.size());
    if (value.is_object()) return "an object";
    return value.dump();  // a scalar: no recursion, no foreign text
}

}  // namespace longview::llm

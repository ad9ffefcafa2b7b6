#include "llm/tokenizer/pre_tokenizer.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "llm/tokenizer/char_class.h"
#include "llm/tokenizer/json_access.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

using nlohmann::json;

/// Cuts numbers (Unicode N) from the rest: together, or digit by digit.
class DigitsSplitter final : public Splitter {
  public:
    explicit DigitsSplitter(bool individual) : individual_(individual) {}

    std::size_t split(std::string_view text, std::size_t begin, bool final, std::size_t max_pieces,
                      Pieces& pieces) const override {
        const char* const end = text.data() + text.size();
        const char* p = text.data() + begin;
        for (std::size_t n = 0; n < max_pieces && p < end; ++n) {
            const char* const first = p;
            const bool number = is_number(p, end);
            do {
                p += decode_utf8(p, end).length;
            } while (!(number && individual_) && p < end && is_number(p, end) == number);
            if (!final && p == end && !(number && individual_)) {
                return static_cast<std::size_t>(first - text.data());
            }
            pieces.emplace_back(first, static_cast<std::size_t>(p - first));
        }
        return static_cast<std::size_t>(p - text.data());
    }

  private:
    static bool is_number(const char* p, const char* end) {
        return CharClassTable::instance().of(decode_utf8(p, end).code) == CharClass::kNumber;
    }
    bool individual_;
};

SplitBehavior behavior_of(const json& config, std::string_view origin) {
    const std::string& name = string_field(config, "behavior", origin);
    if (name == "Isolated") return SplitBehavior::kIsolated;
    if (name == "Removed") return SplitBehavior::kRemoved;
    if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
    if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
    if (name == "Contiguous") return SplitBehavior::kContiguous;
    unsupported(origin, "the split behavior " + quote_for_message(name) + " is not known");
}

/// A pattern that matches exactly this text.
std::string pattern_for(std::string_view text) {
    std::string pattern;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        const bool alnum =
            (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (byte > 0x20 && byte < 0x7F && !alnum) pattern += '\\';
        pattern += c;
    }
    return pattern;
}

}  // namespace

PreTokenizer::PreTokenizer(const json& config, std::string_view origin, bool allow_known) {
    if (!config.is_null()) add(config, origin, allow_known, 0);
    if (!byte_level_) {
        unsupported(origin,
                    "has no ByteLevel pre_tokenizer; only byte-level BPE can be read losslessly");
    }
}

void PreTokenizer::add(const json& config, std::string_view origin, bool allow_known, int depth) {
    if (!config.is_object()) bad_input(origin, "a pre_tokenizer must be an object");
    const std::string& type = string_field(config, "type", origin);
    if (type == "Sequence") {
        const json& list = field(config, "pretokenizers");
        if (!list.is_array() || list.size() > 16 || depth > 4) {
            bad_input(origin, "'pretokenizers' must be a short list");
        }
        for (const json& stage : list) add(stage, origin, allow_known, depth + 1);
    } else if (byte_level_) {
        unsupported(origin, "has the pre_tokenizer " + quote_for_message(type) +
                                " behind ByteLevel, where it would see bytes instead of text");
    } else if (type == "Split") {
        add_split(config, origin, allow_known);
    } else if (type == "ByteLevel") {
        add_byte_level(config, origin, allow_known);
    } else if (type == "Digits") {
        stages_.push_back(std::make_unique<DigitsSplitter>(
            bool_field(config, "individual_digits", false, origin)));
    } else {
        unsupported(origin, "the pre_tokenizer " + quote_for_message(type) + " is not supported");
    }
}

void PreTokenizer::add_split(const json& config, std::string_view origin, bool allow_known) {
    const json& pattern = field(config, "pattern");
    if (!pattern.is_object() || pattern.size() != 1) {
        bad_input(origin, "the pattern of a Split must be one Regex or String");
    }
    const SplitBehavior behavior = behavior_of(config, origin);
    const bool invert = bool_field(config, "invert", false, origin);
    if (pattern.contains("String")) {
        const std::string& text = string_field(pattern, "String", origin);
        if (text.empty()) unsupported(origin, "splits at the empty string");
        stages_.push_back(make_regex_splitter(pattern_for(text), behavior, invert, origin));
        return;
    }
    const std::string& regex = string_field(pattern, "Regex", origin);
    // Known patterns leave nothing between matches: isolating them, or removing what lies
    // between, is the same.
    const bool keeps_matches =
        behavior == SplitBehavior::kIsolated || (behavior == SplitBehavior::kRemoved && invert);
    if (allow_known && keeps_matches) {
        if (auto known = make_known_splitter(regex)) {
            stages_.push_back(std::move(known));
            return;
        }
    }
    stages_.push_back(make_regex_splitter(regex, behavior, invert, origin));
}

void PreTokenizer::add_byte_level(const json& config, std::string_view origin, bool allow_known) {
    byte_level_ = true;
    add_prefix_space_ = bool_field(config, "add_prefix_space", true, origin);
    if (add_prefix_space_ && !stages_.empty()) {
        unsupported(origin, "adds a space in front of every piece (add_prefix_space)");
    }
    if (!bool_field(config, "use_regex", true, origin)) return;
    stages_.push_back(
        allow_known ? make_known_splitter(kGpt2Pattern)
                    : make_regex_splitter(kGpt2Pattern, SplitBehavior::kIsolated, false, origin));
}

std::size_t PreTokenizer::split(std::string_view text, std::size_t begin, bool final,
                                std::size_t max_pieces, Pieces& pieces) const {
    if (stages_.empty()) {
        if (!final || begin == text.size()) return begin;
        pieces.push_back(text.substr(begin));
        return text.size();
    }
    if (stages_.size() == 1) return stages_[0]->split(text, begin, final, max_pieces, pieces);
    Pieces current;
    const std::size_t stop = stages_[0]->split(text, begin, final, max_pieces, current);
    for (std::size_t s = 1; s < stages_.size(); ++s) {
        Pieces next;
        // A piece is a whole text to the stage behind.
        for (const std::string_view piece : current) {
            stages_[s]->split(piece, 0, true, piece.size(), next);
        }
        current.swap(next);
    }
    pieces.insert(pieces.end(), current.begin(), current.end());
    return stop;
}

}  // namespace longview::llm

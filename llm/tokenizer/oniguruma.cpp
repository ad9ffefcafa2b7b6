// tokenizer.json holds regular expressions in Oniguruma's Ruby syntax. Most of it means the same to
// PCRE2. What does not is rewritten here where that is exact, and refused by name where it is not.
#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/splitter.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

constexpr std::size_t kMaxPatternBytes = 16384;  // the longest published one has under 1 KiB
constexpr std::string_view kWord = R"(\p{L}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kWordClass = R"([\p{L}\p{M}\p{Nd}\p{Pc}])";
constexpr std::string_view kNoWordClass = R"([^\p{L}\p{M}\p{Nd}\p{Pc}])";

bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}
bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Translator {
  public:
    Translator(std::string_view pattern, std::string_view origin) : in_(pattern), origin_(origin) {}

    std::string run() {
        if (in_.size() > kMaxPatternBytes) refuse("is longer than 16384 bytes");
        while (at_ < in_.size()) step();
        return std::move(out_);
    }

  private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw Error(Category::kUnsupported,
                    std::string(origin_) + ": the regular expression " + what + " (at byte " +
                        std::to_string(at_) + ")",
                    {{"pattern", std::string(in_.substr(0, 1024))}});
    }

    bool next_is(std::string_view text) const { return in_.substr(at_).starts_with(text); }
    void copy(std::size_t count) {
        out_.append(in_.substr(at_, count));
        at_ += count;
    }

    void step() {
        const char c = in_[at_];
        switch (c) {
            case '\\':
                atom_ = out_.size();
                escape(false);
                break;
            case '[':
                atom_ = out_.size();
                char_class();
                break;
            case '(':
                open_group();
                break;
            case ')':
                if (groups_.empty()) refuse("closes a group that is not open");
                atom_ = groups_.back();
                groups_.pop_back();
                copy(1);
                break;
            case '{':
                repeat();
                break;
            case '?':
            case '*':
            case '+':
            case '|':
            case '^':  // line anchors: PCRE2_MULTILINE gives them Ruby's meaning
            case '$':
                copy(1);
                break;
            case '#':  // PCRE2 takes it literally too unless (?x), which is refused
            default:
                atom_ = out_.size();
                copy(static_cast<std::size_t>(
                    decode_utf8(in_.data() + at_, in_.data() + in_.size()).length));
        }
    }

    void open_group() {
        static constexpr std::string_view kOpeners[] = {
            "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
        groups_.push_back(out_.size());
        if (!next_is("(?")) return copy(1);
        for (const std::string_view opener : kOpeners) {
            if (next_is(opener)) return copy(opener.size());
        }
        refuse("uses the group '" + std::string(in_.substr(at_, 4)) + "', which is not supported");
    }

    // {n}, {n,}, {n,m}, {,m}; anything else in braces is literal text.
    void repeat() {
        std::size_t i = at_ + 1;
        const std::size_t low = i;
        while (i < in_.size() && is_digit(in_[i])) ++i;
        const bool has_low = i > low;
        bool has_comma = false, has_high = false;
        if (i < in_.size() && in_[i] == ',') {
            has_comma = true;
            const std::size_t high = ++i;
            while (i < in_.size() && is_digit(in_[i])) ++i;
            has_high = i > high;
        }
        if (i == in_.size() || in_[i] != '}' || (!has_low && !has_high)) {
            atom_ = out_.size();
            out_ += "\\{";
            ++at_;
            return;
        }
        const std::size_t length = i + 1 - at_;
        std::string braces(in_.substr(at_, length));
        if (!has_low) braces.insert(1, "0");
        at_ += length;
        out_ += braces;
        // In Ruby's syntax a{1,3}+ repeats a{1,3}; to PCRE2 it would be possessive.
        if (next_is("+")) {
            const std::string repeated = out_.substr(atom_);
            out_.resize(atom_);
            out_ += "(?:" + repeated + ")+";
            ++at_;
        } else if (next_is("?") && !has_comma) {
            refuse("makes an exact count lazy, which is not supported");
        }
    }

    void escape(bool in_class) {
        if (at_ + 1 == in_.size()) refuse("ends in a backslash");
        const char c = in_[at_ + 1];
        switch (c) {
            case 's':
                return replace(2, R"(\p{White_Space})");  // PCRE2's \s has U+180E too
            case 'S':
                return replace(2, R"(\P{White_Space})");
            case 'd':
                return replace(2, R"(\p{Nd})");
            case 'D':
                return replace(2, R"(\P{Nd})");
            case 'w':
                return replace(2, in_class ? kWord : kWordClass);
            case 'W':
                if (in_class) refuse(R"(uses \W inside a class, which is not supported)");
                return replace(2, kNoWordClass);
            case 'v':
                return replace(2, R"(\x0B)");
            case 'u':
                return unicode_escape();
            case 'p':
            case 'P':
                return property();
            case 'x':
                return hex_escape();
            case 'A':
            case 'z':
                if (in_class) break;
                [[fallthrough]];
            case 'n':
            case 'r':
            case 't':
            case 'f':
            case 'a':
            case 'e':
                return copy(2);
            default:
                // Escaped signs and characters beyond ASCII stand for themselves.
                if (!is_letter(c) && !is_digit(c)) {
                    out_ += '\\';
                    ++at_;
                    if (static_cast<unsigned char>(c) >= 0x80) out_.pop_back();
                    return copy(static_cast<std::size_t>(
                        decode_utf8(in_.data() + at_, in_.data() + in_.size()).length));
                }
        }
        refuse(std::string("uses the escape \\") + c + ", which is not supported");
    }

    void replace(std::size_t count, std::string_view text) {
        out_ += text;
        at_ += count;
    }

    void unicode_escape() {
        const std::string_view digits = in_.substr(at_ + 2, 4);
        if (digits.size() < 4) refuse(R"(has a \u without four hexadecimal digits)");
        for (const char c : digits) {
            if (!is_hex(c)) refuse(R"(has a \u without four hexadecimal digits)");
        }
        replace(6, R"(\x{)" + std::string(digits) + '}');
    }

    void hex_escape() {
        std::size_t i = at_ + 2;
        const bool braces = i < in_.size() && in_[i] == '{';
        if (braces) ++i;
        const std::size_t first = i;
        while (i < in_.size() && is_hex(in_[i]) && i - first < (braces ? 6U : 2U)) ++i;
        const std::string digits(in_.substr(first, i - first));
        if (digits.empty() || (braces && (i == in_.size() || in_[i] != '}'))) {
            refuse(R"(has a \x without hexadecimal digits)");
        }
        // Two digits name a byte to Oniguruma, a code point to PCRE2: the same below 0x80.
        if (!braces && digits.size() == 2 && digits[0] > '7') {
            refuse(R"(names a single byte by \x, which is not supported)");
        }
        replace(i + (braces ? 1 : 0) - at_, R"(\x{)" + digits + '}');
    }

    void property() {
        const std::size_t close = in_.find('}', at_);
        if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos ||
            close - at_ > 40) {
            refuse(R"(has a \p without {name})");
        }
        const std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
        for (const char c : name) {
            if (!is_letter(c) && c != '_' && c != '^') {
                refuse("names the property '" + std::string(name) + "', which is not supported");
            }
        }
        copy(close + 1 - at_);
    }

    void char_class() {
        copy(1);
        if (next_is("^")) copy(1);
        if (next_is("]")) refuse("has an empty class");
        while (at_ < in_.size() && in_[at_] != ']') {
            if (in_[at_] == '[') {
                refuse("has a class inside a class, which is not supported");
            }
            if (next_is("&&")) refuse("intersects classes, which is not supported");
            if (in_[at_] == '\\') {
                escape(true);
            } else {
                copy(static_cast<std::size_t>(
                    decode_utf8(in_.data() + at_, in_.data() + in_.size()).length));
            }
        }
        if (at_ == in_.size()) refuse("has a class without end");
        copy(1);
    }

    std::string_view in_;
    std::string_view origin_;
    std::size_t at_ = 0;
    std::string out_;
    std::size_t atom_ = 0;             // where in out_ the last repeatable thing begins
    std::vector<std::size_t> groups_;  // where in out_ the open groups begin
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern, std::string_view origin) {
    return Translator(pattern, origin).run();
}

}  // namespace longview::llm

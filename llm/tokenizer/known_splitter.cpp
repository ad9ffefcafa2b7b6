// Patterns that tokenizers share are lists of alternatives from a small stock. Each alternative in
// the stock has a matcher here that needs no backtracking; a pattern is recognised when all of its
// alternatives are in the stock, in any order.
#include <array>
#include <cstdint>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/char_class.h"
#include "llm/tokenizer/splitter.h"
#include "llm/tokenizer/utf8.h"

namespace longview::llm {
namespace {

using enum CharClass;

constexpr CharSet kLetters = set_of(kUpper, kLower, kCaseless);
constexpr CharSet kSpaces = set_of(kBlank, kNewline, kWhite);
constexpr CharSet kSigns = set_of(kOther, kSlash, kMark);  // [^\s\p{L}\p{N}]
constexpr CharSet kLead =                                  // [^\r\n\p{L}\p{N}]
    set_of(kOther, kSlash, kMark, kBlank, kWhite);
constexpr CharSet kUpperish = set_of(kUpper, kCaseless, kMark);
constexpr CharSet kLowerish = set_of(kLower, kCaseless, kMark);

enum class Shape {
    kContraction,      // 's, 't, ... with or without case
    kRun,              // lead? body{1,max} tail*
    kCapitalised,      // lead? upperish* lowerish+ contraction?
    kAllCapitals,      // lead? upperish+ lowerish* contraction?
    kToLastNewline,    // white space up to its last line break
    kAllButLastSpace,  // white space, less its last character before other text
};

struct Alternative {
    std::string_view pattern;
    Shape shape;
    CharSet lead;  // may come once in front
    CharSet body;
    int max;           // of body; 0: no limit
    CharSet tail;      // any number behind
    bool fold;         // kContraction: upper case too
    bool contraction;  // one may follow
};

constexpr CharSet kNothing = 0;
constexpr CharSet kBlankOnly = set_of(kBlank);
constexpr CharSet kNumbers = set_of(kNumber);
constexpr CharSet kBreaks = set_of(kNewline);
constexpr CharSet kBreaksOrSlash = set_of(kNewline, kSlash);

constexpr Alternative contraction(std::string_view pattern, bool fold) {
    return {pattern, Shape::kContraction, 0, 0, 0, 0, fold, false};
}
constexpr Alternative run(std::string_view pattern, CharSet lead, CharSet body,
                          CharSet tail = kNothing) {
    return {pattern, Shape::kRun, lead, body, 0, tail, false, false};
}
constexpr Alternative digits(std::string_view pattern, int max) {
    return {pattern, Shape::kRun, 0, kNumbers, max, 0, false, false};
}
constexpr Alternative word(std::string_view pattern, Shape shape, bool contraction) {
    return {pattern, shape, kLead, 0, 0, 0, false, contraction};
}
constexpr Alternative space(std::string_view pattern, Shape shape) {
    return {pattern, shape, 0, 0, 0, 0, false, false};
}

constexpr Alternative kCaseSensitiveContraction = contraction(R"re('(?:[sdmt]|ll|ve|re))re", false);

constexpr Alternative kStock[] = {
    kCaseSensitiveContraction,
    contraction(R"re('(?i:[sdmt]|ll|ve|re))re", true),
    contraction(R"re((?i:'s|'t|'re|'ve|'m|'ll|'d))re", true),
    run(R"(\p{L}+)", kNothing, kLetters),
    run(R"( ?\p{L}+)", kBlankOnly, kLetters),
    run(R"([^\r\n\p{L}\p{N}]?\p{L}+)", kLead, kLetters),
    run(R"([^\r\n\p{L}\p{N}]?+\p{L}+)", kLead, kLetters),
    run(R"([^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+)", kLead, kLetters | set_of(kMark)),
    word(R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)",
         Shape::kCapitalised, false),
    word(R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)",
         Shape::kAllCapitals, false),
    word(R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)re"
         R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)?)re",
         Shape::kCapitalised, true),
    word(R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)re"
         R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)?)re",
         Shape::kAllCapitals, true),
    digits(R"(\p{N})", 1),
    digits(R"(\p{N}{1,3})", 3),
    run(R"(\p{N}+)", kNothing, kNumbers),
    run(R"( ?\p{N}+)", kBlankOnly, kNumbers),
    run(R"( ?[^\s\p{L}\p{N}]+)", kBlankOnly, kSigns),
    run(R"( ?[^\s\p{L}\p{N}]+[\r\n]*)", kBlankOnly, kSigns, kBreaks),
    run(R"( ?[^\s\p{L}\p{N}]+[\r\n/]*)", kBlankOnly, kSigns, kBreaksOrSlash),
    space(R"(\s*[\r\n]+)", Shape::kToLastNewline),
    space(R"(\s*[\r\n])", Shape::kToLastNewline),
    space(R"re(\s+(?!\S))re", Shape::kAllButLastSpace),
    run(R"(\s+)", kNothing, kSpaces),
};

/// Walks over text; remembers whether a decision was made at its end.
class Cursor {
  public:
    Cursor(const CharClassTable& table, std::string_view text)
        : table_(&table), end_(text.data() + text.size()) {}

    bool touched_end() const { return touched_end_; }
    const char* end() const { return end_; }

    /// Class of the character at p, and its length; kNone at the end.
    CharClass look(const char* p, int& length) {
        if (p == end_) {
            touched_end_ = true;
            length = 0;
            return kNone;
        }
        const auto byte = static_cast<unsigned char>(*p);
        if (byte < 0x80) {
            length = 1;
            return table_->ascii(byte);
        }
        const Utf8Char c = decode_utf8(p, end_);
        length = c.length;
        return table_->of(c.code);
    }
    CharClass look(const char* p) {
        int length = 0;
        return look(p, length);
    }

    /// End of the run of characters in `set` from p on.
    const char* skip(const char* p, CharSet set) {
        for (;;) {
            int length = 0;
            if (!contains(set, look(p, length))) return p;
            p += length;
        }
    }

    /// End of a contraction at p, or null. Case folding is Unicode's: U+017F is an s.
    const char* contraction(const char* p, bool fold) {
        if (p == end_ || *p != '\'') {
            if (p == end_) touched_end_ = true;
            return nullptr;
        }
        ++p;
        const char first = letter(p, fold);
        switch (first) {
            case 's':
                return p + (static_cast<unsigned char>(*p) < 0x80 ? 1 : 2);
            case 't':
            case 'm':
            case 'd':
                return p + 1;
            case 'r':
            case 'v':
                return letter(p + 1, fold) == 'e' ? p + 2 : nullptr;
            case 'l':
                return letter(p + 1, fold) == 'l' ? p + 2 : nullptr;
            default:
                return nullptr;
        }
    }

  private:
    char letter(const char* p, bool fold) {
        if (p == end_) {
            touched_end_ = true;
            return 0;
        }
        if (!fold) return *p;
        if (*p >= 'A' && *p <= 'Z') return static_cast<char>(*p + ('a' - 'A'));
        if (*p == '\xC5' && p + 1 < end_ && p[1] == '\xBF') return 's';
        return *p;
    }

    const CharClassTable* table_;
    const char* end_;
    bool touched_end_ = false;
};

/// One alternative at p: the end of its match, or null.
class Matcher {
  public:
    explicit Matcher(Cursor& cursor) : cursor_(cursor) {}

    const char* match(const Alternative& a, const char* p) {
        switch (a.shape) {
            case Shape::kContraction:
                return cursor_.contraction(p, a.fold);
            case Shape::kRun:
                return run(a, p);
            case Shape::kCapitalised:
                return with_contraction(a, capitalised(a, p));
            case Shape::kAllCapitals:
                return with_contraction(a, all_capitals(a, p));
            case Shape::kToLastNewline:
                return to_last_newline(p);
            case Shape::kAllButLastSpace:
                return all_but_last_space(p);
        }
        return nullptr;
    }

  private:
    // Greedy without going back is exact here: a lead that is not itself part of the body can only
    // be one if the body follows, and one that is part of it makes no difference to the end.
    const char* run(const Alternative& a, const char* p) {
        int length = 0;
        CharClass c = cursor_.look(p, length);
        if (!contains(a.body, c)) {
            if (!contains(a.lead, c)) return nullptr;
            p += length;
            c = cursor_.look(p, length);
            if (!contains(a.body, c)) return nullptr;
        }
        p += length;
        if (a.max == 0) {
            p = cursor_.skip(p, a.body);
        } else {
            for (int i = 1; i < a.max && contains(a.body, cursor_.look(p, length)); ++i) {
                p += length;
            }
        }
        return a.tail == 0 ? p : cursor_.skip(p, a.tail);
    }

    const char* with_contraction(const Alternative& a, const char* p) {
        if (p == nullptr || !a.contraction) return p;
        const char* const after = cursor_.contraction(p, true);
        return after != nullptr ? after : p;
    }

    const char* capitalised(const Alternative& a, const char* p) {
        int length = 0;
        if (contains(a.lead, cursor_.look(p, length))) {
            if (const char* end = upperish_then_lowerish(p + length)) return end;
        }
        return upperish_then_lowerish(p);  // a mark can be lead as well as letter
    }

    // upperish* takes all it can, then gives back until lowerish+ finds its first character: the
    // last one of the run that is both.
    const char* upperish_then_lowerish(const char* p) {
        const char* last_both = nullptr;
        for (;;) {
            int length = 0;
            const CharClass c = cursor_.look(p, length);
            if (!contains(kUpperish, c)) {
                if (contains(kLowerish, c)) return cursor_.skip(p + length, kLowerish);
                return last_both;
            }
            p += length;
            if (contains(kLowerish, c)) last_both = p;
        }
    }

    const char* all_capitals(const Alternative& a, const char* p) {
        int length = 0;
        if (contains(a.lead, cursor_.look(p, length))) {
            const char* const end = cursor_.skip(p + length, kUpperish);
            if (end != p + length) return cursor_.skip(end, kLowerish);
        }
        const char* const end = cursor_.skip(p, kUpperish);
        return end == p ? nullptr : cursor_.skip(end, kLowerish);
    }

    const char* to_last_newline(const char* p) {
        const char* last = nullptr;
        for (;;) {
            int length = 0;
            const CharClass c = cursor_.look(p, length);
            if (!contains(kSpaces, c)) return last;
            p += length;
            if (c == kNewline) last = p;
        }
    }

    const char* all_but_last_space(const char* p) {
        const char* const begin = p;
        const char* before = p;
        for (;;) {
            int length = 0;
            const CharClass c = cursor_.look(p, length);
            if (!contains(kSpaces, c)) {
                if (c == kNone) return p == begin ? nullptr : p;
                return before == begin ? nullptr : before;
            }
            before = p;
            p += length;
        }
    }

    Cursor& cursor_;
};

/// The classes that a match of `a` can begin with.
CharSet first_of(const Alternative& a) {
    switch (a.shape) {
        case Shape::kContraction:
            return set_of(kOther);
        case Shape::kRun:
            return a.lead | a.body;
        case Shape::kCapitalised:
            return a.lead | kUpperish | kLowerish;
        case Shape::kAllCapitals:
            return a.lead | kUpperish;
        case Shape::kToLastNewline:
        case Shape::kAllButLastSpace:
            return kSpaces;
    }
    return 0;
}

class KnownSplitter final : public Splitter {
  public:
    explicit KnownSplitter(std::vector<Alternative> alternatives) {
        for (std::size_t c = 0; c < by_first_.size(); ++c) {
            for (const Alternative& a : alternatives) {
                if (contains(first_of(a), static_cast<CharClass>(c))) by_first_[c].push_back(a);
            }
        }
    }

    /// Whether every character is matched by some alternative whatever stands around it.
    bool covers_all_text() const {
        for (std::size_t c = 0; c < by_first_.size(); ++c) {
            const CharSet set = set_of(static_cast<CharClass>(c));
            bool covered = false;
            for (const Alternative& a : by_first_[c]) {
                covered |= a.shape == Shape::kRun && (a.body & set) != 0;
                // Between them these two match any letter or mark, alone too.
                covered |= a.shape == Shape::kCapitalised && (kLowerish & set) != 0;
                covered |= a.shape == Shape::kAllCapitals && (kUpperish & set) != 0;
            }
            if (!covered) return false;
        }
        return true;
    }

    std::size_t split(std::string_view text, std::size_t begin, bool final, std::size_t max_pieces,
                      Pieces& pieces) const override {
        Cursor cursor(CharClassTable::instance(), text);
        Matcher matcher(cursor);
        const char* p = text.data() + begin;
        for (std::size_t n = 0; n < max_pieces && p != cursor.end(); ++n) {
            const char* const next = match(cursor, matcher, p);
            if (!final && cursor.touched_end()) break;
            pieces.emplace_back(p, static_cast<std::size_t>(next - p));
            p = next;
        }
        return static_cast<std::size_t>(p - text.data());
    }

  private:
    const char* match(Cursor& cursor, Matcher& matcher, const char* p) const {
        const auto first = static_cast<std::size_t>(cursor.look(p));
        for (const Alternative& a : by_first_[first]) {
            if (const char* end = matcher.match(a, p)) return end;
        }
        LONGVIEW_CHECK(false, "the alternatives cover every character");
        return p;
    }

    std::array<std::vector<Alternative>, static_cast<std::size_t>(kNone)> by_first_;
};

/// Cuts a pattern at its outermost bars.
std::vector<std::string_view> outer_alternatives(std::string_view pattern) {
    std::vector<std::string_view> parts;
    std::size_t begin = 0;
    int depth = 0;
    bool in_class = false;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        switch (pattern[i]) {
            case '\\':
                ++i;
                break;
            case '[':
                in_class = true;
                break;
            case ']':
                in_class = false;
                break;
            case '(':
                depth += in_class ? 0 : 1;
                break;
            case ')':
                depth -= in_class ? 0 : 1;
                break;
            case '|':
                if (depth == 0 && !in_class) {
                    parts.push_back(pattern.substr(begin, i - begin));
                    begin = i + 1;
                }
                break;
            default:
                break;
        }
    }
    parts.push_back(pattern.substr(begin));
    return parts;
}

}  // namespace

const std::string_view kGpt2Pattern =
    R"re('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re";

std::unique_ptr<Splitter> make_known_splitter(std::string_view pattern) {
    // GPT-2 as first published lists its contractions one by one.
    static constexpr std::string_view kListed = "'s|'t|'re|'ve|'m|'ll|'d|";
    std::vector<Alternative> alternatives;
    if (pattern.starts_with(kListed)) {
        alternatives.push_back(kCaseSensitiveContraction);
        pattern.remove_prefix(kListed.size());
    }
    for (const std::string_view part : outer_alternatives(pattern)) {
        const Alternative* known = nullptr;
        for (const Alternative& a : kStock) {
            if (a.pattern == part) known = &a;
        }
        if (known == nullptr) return nullptr;
        alternatives.push_back(*known);
    }
    auto splitter = std::make_unique<KnownSplitter>(std::move(alternatives));
    if (!splitter->covers_all_text()) return nullptr;
    return splitter;
}

}  // namespace longview::llm

// Unicode character classes as pre-tokenizer patterns need them, one byte a code point.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

namespace longview::llm {

/// A partition of all code points: the sets in known patterns are unions of these.
enum class CharClass : std::uint8_t {
    kOther,     // punctuation, symbols, marks of no language, unassigned
    kSlash,     // '/'
    kUpper,     // Lu, Lt
    kLower,     // Ll
    kCaseless,  // Lm, Lo
    kMark,      // Mn, Mc, Me
    kNumber,    // Nd, Nl, No
    kBlank,     // U+0020
    kNewline,   // CR, LF
    kWhite,     // the rest of White_Space
    kNone,      // no character: the end of the text; in no set
};

/// A set of classes, one bit each.
using CharSet = std::uint16_t;

constexpr CharSet set_of(CharClass c) {
    return static_cast<CharSet>(1U << static_cast<unsigned>(c));
}
template <typename... More>
constexpr CharSet set_of(CharClass first, More... more) {
    return static_cast<CharSet>(set_of(first) | set_of(more...));
}
constexpr bool contains(CharSet set, CharClass c) {
    return ((set >> static_cast<unsigned>(c)) & 1U) != 0;
}

/// Classes by code point. Pages of 256 are filled from ICU when first asked for, so that starting
/// costs nothing; safe to use from several threads.
class CharClassTable {
  public:
    static const CharClassTable& instance();

    CharClass ascii(unsigned char byte) const { return ascii_[byte]; }
    /// code is at most U+10FFFF.
    CharClass of(char32_t code) const {
        const Page* page = pages_[code >> 8].load(std::memory_order_acquire);
        if (page == nullptr) page = fill_page(code >> 8);
        return (*page)[code & 0xFF];
    }

    CharClassTable(const CharClassTable&) = delete;
    CharClassTable& operator=(const CharClassTable&) = delete;

  private:
    using Page = std::array<CharClass, 256>;
    CharClassTable();
    ~CharClassTable();
    const Page* fill_page(char32_t number) const;

    std::array<CharClass, 128> ascii_{};
    mutable std::array<std::atomic<const Page*>, 0x1100> pages_{};
};

}  // namespace longview::llm

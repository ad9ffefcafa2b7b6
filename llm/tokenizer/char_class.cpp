#include "llm/tokenizer/char_class.h"

#include <unicode/uchar.h>

namespace longview::llm {
namespace {

CharClass classify(char32_t code) {
    if (code == U' ') return CharClass::kBlank;
    if (code == U'\r' || code == U'\n') return CharClass::kNewline;
    if (code == U'/') return CharClass::kSlash;
    const auto c = static_cast<UChar32>(code);
    if (u_hasBinaryProperty(c, UCHAR_WHITE_SPACE)) return CharClass::kWhite;
    switch (u_charType(c)) {
        case U_UPPERCASE_LETTER:
        case U_TITLECASE_LETTER:
            return CharClass::kUpper;
        case U_LOWERCASE_LETTER:
            return CharClass::kLower;
        case U_MODIFIER_LETTER:
        case U_OTHER_LETTER:
            return CharClass::kCaseless;
        case U_NON_SPACING_MARK:
        case U_ENCLOSING_MARK:
        case U_COMBINING_SPACING_MARK:
            return CharClass::kMark;
        case U_DECIMAL_DIGIT_NUMBER:
        case U_LETTER_NUMBER:
        case U_OTHER_NUMBER:
            return CharClass::kNumber;
        default:
            return CharClass::kOther;
    }
}

}  // namespace

const CharClassTable& CharClassTable::instance() {
    static const CharClassTable table;
    return table;
}

CharClassTable::CharClassTable() {
    for (char32_t c = 0; c < 128; ++c) ascii_[c] = classify(c);
}

CharClassTable::~CharClassTable() {
    for (auto& page : pages_) delete page.load();
}

const CharClassTable::Page* CharClassTable::fill_page(char32_t number) const {
    auto page = std::make_unique<Page>();
    for (char32_t i = 0; i < 256; ++i) (*page)[i] = classify(number << 8 | i);
    const Page* expected = nullptr;
    // Another thread may have been faster; its page says the same.
    if (pages_[number].compare_exchange_strong(expected, page.get())) return page.release();
    return expected;
}

}  // namespace longview::llm

// Pre-tokenizers: the hand-written matchers against PCRE2, Oniguruma's meaning, and the stages of
// tokenizer.json.
#include "llm/tokenizer/pre_tokenizer.h"

#include <unicode/uchar.h>

#include <QTest>
#include <nlohmann/json.hpp>
#include <random>

#include "errors.h"
#include "llm/tokenizer/splitter.h"
#include "llm/tokenizer/utf8.h"
#include "tiny_tokenizer.h"

using namespace longview::llm;
using namespace longview::test;
using nlohmann::json;

namespace {

struct NamedPattern {
    const char* name;
    const char* regex;
};
// As the tokenizer.json files of these models write them.
const NamedPattern kPatterns[] = {
    {"GPT-2", R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re"},
    {"Llama 3",
     R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"},
    {"Qwen 2 and the demo model",
     R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"},
    {"o200k, as MiniMax-M2 has it",
     R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re"},
    {"words with marks",
     R"re('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]|\s+(?!\S)|\s+)re"},
    {"o200k without contractions",
     R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+(?!\S)|\s+)re"},
};

Pieces split_all(const Splitter& splitter, std::string_view text) {
    Pieces pieces;
    for (std::size_t at = 0; at < text.size();) {
        at = splitter.split(text, at, true, 3, pieces);  // a few at a time, as encode does
    }
    return pieces;
}

/// Text that makes the alternatives compete: all classes, and characters of all of Unicode. Only
/// those older than the Unicode 14 of PCRE2 10.42, so that both sides know the same.
std::string random_text(std::mt19937& random) {
    static const char32_t common[] = {
        U'a', U'b',  U's',  U'T',   U'l',   U'L',   U'E',   U'\'',  U' ',    U' ',
        U' ', U'\n', U'\r', U'\t',  U'/',   U'.',   U'!',   U'1',   U'7',    0x0301,
        U'é', U'É',  U'漢', 0x01C5, 0x02B0, 0x017F, 0x2019, 0x00A0, 0x3000,  0x1F600,
        U'½', U'٣',  0x85,  0x180E, 0x200B, 0x0903, U'ß',   0x2028, 0x1D7D8, 0x0B};
    std::string text;
    for (unsigned i = 1 + random() % 14; i > 0; --i) {
        char32_t code = common[random() % std::size(common)];
        if (random() % 8 == 0) {
            UVersionInfo age;
            do {
                code = random() % (random() % 2 == 0 ? 0x3000 : 0x110000);
                u_charAge(static_cast<UChar32>(code), age);
            } while ((code >= 0xD800 && code < 0xE000) || age[0] > 14 || code == 0);
        }
        append_utf8(text, code);
    }
    return text;
}

std::vector<std::string> pieces_of(const json& config, std::string_view text) {
    const PreTokenizer pre_tokenizer(config, "tokenizer.json");
    Pieces pieces;
    for (std::size_t at = 0; at < text.size();) {
        at = pre_tokenizer.split(text, at, true, 100, pieces);
    }
    return {pieces.begin(), pieces.end()};
}

json sequence(std::vector<json> stages) {
    stages.push_back(byte_level_stage());
    return {{"type", "Sequence"}, {"pretokenizers", stages}};
}

using Strings = std::vector<std::string>;

}  // namespace

class PreTokenizerTest : public QObject {
    Q_OBJECT

  private slots:
    void handWrittenMatchersEqualPcre2_data() {
        QTest::addColumn<QByteArray>("regex");
        for (const NamedPattern& p : kPatterns) QTest::newRow(p.name) << QByteArray(p.regex);
    }
    void handWrittenMatchersEqualPcre2() {
        QFETCH(QByteArray, regex);
        const auto known = make_known_splitter(regex.toStdString());
        QVERIFY(known != nullptr);
        const auto general =
            make_regex_splitter(regex.toStdString(), SplitBehavior::kIsolated, false, "test");
        std::mt19937 random(1);
        for (int round = 0; round < 30000; ++round) {
            const std::string text = random_text(random);
            const Pieces expected = split_all(*general, text);
            if (split_all(*known, text) != expected) {
                QFAIL(qPrintable("differs for " + QByteArray::fromStdString(text).toHex(' ')));
            }
        }
    }

    void everyCharacterHasTheClassOfPcre2() {
        // One character at a time between letters, digits and spaces: all of Unicode 14.
        const auto known = make_known_splitter(kPatterns[3].regex);
        const auto general =
            make_regex_splitter(kPatterns[3].regex, SplitBehavior::kIsolated, false, "test");
        for (char32_t code = 1; code < 0x110000; ++code) {
            if (code == 0xD800) code = 0xE000;
            if (code == 0x3500) code = 0x4D00;  // ideographs are all alike
            if (code == 0x5000) code = 0x9F00;
            if (code == 0xAC80) code = 0xD700;
            if (code == 0x20100) code = 0x2A600;
            if (code == 0x31400) code = 0xE0000;
            if (code == 0xE0200) code = 0x10FF00;
            UVersionInfo age;
            u_charAge(static_cast<UChar32>(code), age);
            if (age[0] > 14) continue;
            std::string text = "a";
            append_utf8(text, code);
            text += "B 1";
            append_utf8(text, code);
            if (split_all(*known, text) != split_all(*general, text)) {
                QFAIL(qPrintable(
                    QStringLiteral("differs for U+%1").arg(static_cast<uint>(code), 4, 16)));
            }
        }
    }

    void piecesGivenEarlyStayTheSame_data() { handWrittenMatchersEqualPcre2_data(); }
    void piecesGivenEarlyStayTheSame() {
        QFETCH(QByteArray, regex);
        const auto known = make_known_splitter(regex.toStdString());
        const auto general =
            make_regex_splitter(regex.toStdString(), SplitBehavior::kIsolated, false, "test");
        std::mt19937 random(2);
        for (int round = 0; round < 5000; ++round) {
            const std::string head = random_text(random);
            const std::string text = head + random_text(random);
            for (const Splitter* splitter : {known.get(), general.get()}) {
                Pieces early;
                const std::size_t stop = splitter->split(head, 0, false, 1000, early);
                QVERIFY(stop <= head.size());
                const Pieces all = split_all(*splitter, text);
                QVERIFY(early.size() <= all.size());
                QVERIFY(std::equal(early.begin(), early.end(), all.begin()));
            }
        }
    }

    void splitsKnownExamples() {
        const auto gpt2 = make_known_splitter(kGpt2Pattern);
        QCOMPARE(split_all(*gpt2, "I'll pay  12345 euros!!\n\nOK?  "),
                 (Pieces{"I", "'ll", " pay", " ", " 12345", " euros", "!!", "\n", "\n", "OK", "?",
                         "  "}));
        const auto llama = make_known_splitter(kPatterns[1].regex);
        QCOMPARE(
            split_all(*llama, "I'LL pay  12345 (euros)!!\n\n x"),
            (Pieces{"I", "'LL", " pay", " ", " ", "123", "45", " (", "euros", ")!!\n\n", " x"}));
        const auto o200k = make_known_splitter(kPatterns[3].regex);
        QCOMPARE(split_all(*o200k, "JSONParser isn't a/b/\n漢字Text"),
                 (Pieces{"JSONParser", " isn't", " a", "/b", "/\n", "漢字Text"}));
    }

    void leavesOtherPatternsToPcre2() {
        for (const char* pattern :
             {"", R"(\p{L}+)", R"(\p{L}+|\s+)", R"(\w+|\s+)", R"(\s++$|\p{L}+)", "|", "("}) {
            QVERIFY2(make_known_splitter(pattern) == nullptr, pattern);
        }
    }

    void readsOnigurumaAsOniguruma_data() {
        QTest::addColumn<QByteArray>("regex");
        QTest::addColumn<QByteArray>("text");
        QTest::addColumn<QByteArray>("match");  // the first one
        const auto row = [](const char* name, const char* regex, const char* text,
                            const char* match) {
            QTest::newRow(name) << QByteArray(regex) << QByteArray(text) << QByteArray(match);
        };
        row("white space without U+180E", R"(\s+)", "\xE1\xA0\x8E  x", "  ");
        row("white space with U+0085", R"(\s+)", "x\xC2\x85y", "\xC2\x85");
        row("words have marks", R"(\w+)", "-e\xCC\x81_1-", "e\xCC\x81_1");
        row("a count and a plus repeat", R"(\p{N}{1,3}+)", "a1234567", "1234567");
        row("a count of a group and a plus", R"((?:ab){1,2}+)", "ababababab", "ababababab");
        row("a count without a lower end", R"(a{,2}b)", "aaab", "aab");
        row("braces that count nothing", R"(a{x)", "aa{x", "a{x");
        row("a possessive plus", R"(\p{L}++)", "1ab2", "ab");
        row("the end of a line", R"(a+$)", "aa aaa\nb", "aaa");
        row("the beginning of a line", R"(^b+)", "abb\nbb", "bb");
        row("a code point", R"([\u4e00-\u9fff]+)", "a漢字", "漢字");
        row("a code point in braces", R"(\x{1F600})", "a😀", "😀");
        row("a vertical tab", R"(\v)", "\n\x0B", "\x0B");
        row("escaped signs", R"([!\-\]\\]+)", "a-]\\!", "-]\\!");
        row("a comment sign", R"(#\d)", "1#2", "#2");
        row("look-behind", R"((?<=a)b)", "bab", "b");
        row("an atomic group", R"((?>a+)b)", "aab", "aab");
    }
    void readsOnigurumaAsOniguruma() {
        QFETCH(QByteArray, regex);
        QFETCH(QByteArray, text);
        QFETCH(QByteArray, match);
        const auto splitter =
            make_regex_splitter(regex.toStdString(), SplitBehavior::kRemoved, true, "test");
        Pieces pieces;
        const std::string subject = text.toStdString();
        splitter->split(subject, 0, true, 1000, pieces);
        QVERIFY(!pieces.empty());
        QCOMPARE(QByteArray::fromStdString(std::string(pieces[0])), match);
    }

    void refusesWhatMeansSomethingElse_data() {
        QTest::addColumn<QByteArray>("regex");
        for (const char* regex : {R"(\b)",
                                  R"(\h)",
                                  R"(\K)",
                                  R"(\R)",
                                  R"(\X)",
                                  R"(\G)",
                                  R"(\1)",
                                  R"(\0)",
                                  R"([[:alpha:]])",
                                  "[a&&b]",
                                  "[a[b]]",
                                  "(?m:a)",
                                  "(?x) a",
                                  "(?<name>a)",
                                  "(?#note)a",
                                  "(?R)",
                                  "a{2}?",
                                  "[]",
                                  "[^]",
                                  "[a",
                                  "a)",
                                  "(a",
                                  R"(\xFF)",
                                  R"(\x{110000})",
                                  R"(\u12)",
                                  R"(\p{Nonsense})",
                                  R"(\pL)",
                                  "a\\",
                                  "*",
                                  "a*",
                                  "(?:a|)",
                                  "",
                                  R"([\W])",
                                  R"(\u{12})"}) {
            QTest::newRow(regex) << QByteArray(regex);
        }
        QTest::newRow("too long") << QByteArray(20000, 'a');
        QTest::newRow("too deep") << QByteArray(500, '(') + "a" + QByteArray(500, ')');
    }
    void refusesWhatMeansSomethingElse() {
        QFETCH(QByteArray, regex);
        LONGVIEW_VERIFY_ERROR(
            make_regex_splitter(regex.toStdString(), SplitBehavior::kIsolated, false,
                                "tokenizer.json"),
            ({QStringLiteral("unsupported: tokenizer.json: the regular expression")}));
    }

    void givesUpOnPatternsThatExplode() {
        const auto splitter =
            make_regex_splitter("(?:a+)+[bc]", SplitBehavior::kIsolated, false, "tokenizer.json");
        Pieces pieces;
        LONGVIEW_VERIFY_ERROR(
            splitter->split(std::string(60, 'a'), 0, true, 10, pieces),
            ({QStringLiteral("unsupported: "), QStringLiteral("gives up on this text")}));
    }

    void appliesEverySplitBehavior_data() {
        QTest::addColumn<QByteArray>("behavior");
        QTest::addColumn<bool>("invert");
        QTest::addColumn<QByteArrayList>("pieces");
        const auto row = [](const char* behavior, bool invert, QByteArrayList pieces) {
            QTest::addRow("%s %d", behavior, invert) << QByteArray(behavior) << invert << pieces;
        };
        // The example of the documentation of Hugging Face tokenizers: "the-final--countdown".
        row("Removed", false, {"the", "final", "countdown"});
        row("Removed", true, {"-", "-", "-"});
        row("Isolated", false, {"the", "-", "final", "-", "-", "countdown"});
        row("MergedWithPrevious", false, {"the-", "final-", "-", "countdown"});
        row("MergedWithNext", false, {"the", "-final", "-", "-countdown"});
        row("Contiguous", false, {"the", "-", "final", "--", "countdown"});
        row("Isolated", true, {"the", "-", "final", "-", "-", "countdown"});
    }
    void appliesEverySplitBehavior() {
        QFETCH(QByteArray, behavior);
        QFETCH(bool, invert);
        QFETCH(QByteArrayList, pieces);
        for (const char* kind : {"String", "Regex"}) {
            const json stage = {{"type", "Split"},
                                {"pattern", {{kind, "-"}}},
                                {"behavior", behavior.toStdString()},
                                {"invert", invert}};
            QByteArrayList found;
            for (const auto& piece : pieces_of(sequence({stage}), "the-final--countdown")) {
                found.append(QByteArray::fromStdString(piece));
            }
            QCOMPARE(found, pieces);
        }
    }

    void runsStagesOneBehindTheOther() {
        QCOMPARE(pieces_of(sequence({split_stage("[a-z]+|[0-9]+"),
                                     {{"type", "Digits"}, {"individual_digits", true}}}),
                           "ab12 c3"),
                 (Strings{"ab", "1", "2", " ", "c", "3"}));
        QCOMPARE(
            pieces_of(sequence({{{"type", "Digits"}, {"individual_digits", false}}}), "ab12٣c3"),
            (Strings{"ab", "12٣", "c", "3"}));
        QCOMPARE(
            pieces_of({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}},
                      "it's 5"),
            (Strings{"it", "'s", " 5"}));
        QCOMPARE(pieces_of(byte_level_stage(), "it's 5"), (Strings{"it's 5"}));
    }

    void refusesBadStages() {
        const auto refused = [](const json& config, const char* what) {
            LONGVIEW_VERIFY_ERROR(PreTokenizer(config, "tokenizer.json"),
                                  ({QString::fromUtf8(what)}));
        };
        refused(nullptr, "no ByteLevel");
        refused(json::array(), "must be an object");
        refused({{"type", "Whitespace"}}, "\"Whitespace\"");
        refused({{"type", "Sequence"}, {"pretokenizers", {byte_level_stage(), split_stage("a")}}},
                "behind ByteLevel");
        refused(sequence(
                    {{{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Sideways"}}}),
                "\"Sideways\"");
        refused(sequence(
                    {{{"type", "Split"}, {"pattern", {{"String", ""}}}, {"behavior", "Isolated"}}}),
                "empty string");
        refused(sequence({{{"type", "Split"}, {"pattern", "a"}, {"behavior", "Isolated"}}}),
                "one Regex or String");
        refused(
            {{"type", "Sequence"}, {"pretokenizers", {split_stage("a"), {{"type", "ByteLevel"}}}}},
            "add_prefix_space");
        json nested = byte_level_stage();
        for (int i = 0; i < 10; ++i) nested = {{"type", "Sequence"}, {"pretokenizers", {nested}}};
        refused(nested, "must be a short list");
    }
};

QTEST_GUILESS_MAIN(PreTokenizerTest)
#include "pre_tokenizer_test.moc"

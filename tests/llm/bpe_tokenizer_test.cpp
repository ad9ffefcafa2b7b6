// Byte-level BPE from tokenizer.json: merging against a plain reference, losslessness, special
// tokens, and refusals.
#include <QFile>
#include <QTest>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "errors.h"
#include "llm/tokenizer/bpe_tokenizer.h"
#include "llm/tokenizer/tokenizer.h"
#include "tiny_tokenizer.h"

using namespace longview::llm;
using namespace longview::test;
using nlohmann::json;

namespace {

std::unique_ptr<Tokenizer> parse(const json& tokenizer, const std::string& config = {}) {
    return parse_bpe_tokenizer(tokenizer.dump(), config, "tokenizer.json");
}

/// Merging as in the definition: look for the best pair, join it, start again.
class ReferenceBpe {
  public:
    explicit ReferenceBpe(const json& tokenizer) : vocab_(tokenizer["model"]["vocab"]) {
        int rank = 0;
        for (const json& merge : tokenizer["model"]["merges"]) {
            ranks_[{merge[0], merge[1]}] = rank++;
        }
    }
    std::vector<TokenId> encode(std::string_view word) const {
        std::vector<std::string> parts;
        for (const char c : word) parts.push_back(byte_level(std::string(1, c)));
        for (;;) {
            int best_rank = INT_MAX;
            std::size_t best = 0;
            for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
                const auto found = ranks_.find({parts[i], parts[i + 1]});
                if (found != ranks_.end() && found->second < best_rank) {
                    best_rank = found->second;
                    best = i;
                }
            }
            if (best_rank == INT_MAX) break;
            parts[best] += parts[best + 1];
            parts.erase(parts.begin() + static_cast<long>(best) + 1);
        }
        std::vector<TokenId> ids;
        for (const std::string& part : parts) ids.push_back(vocab_.at(part));
        return ids;
    }

  private:
    std::map<std::string, TokenId> vocab_;
    std::map<std::pair<std::string, std::string>, int> ranks_;
};

std::string random_bytes(std::mt19937& random, std::size_t length, unsigned kinds) {
    std::string out(length, ' ');
    for (char& c : out) c = static_cast<char>(kinds == 256 ? random() : 'a' + random() % kinds);
    return out;
}

/// Merges over few letters in random order: some make their parts only after using them.
json random_bpe(std::mt19937& random, unsigned letters, int merges, bool shuffled) {
    std::vector<std::string> tokens;
    for (unsigned i = 0; i < letters; ++i)
        tokens.push_back(std::string(1, static_cast<char>('a' + i)));
    std::vector<std::pair<std::string, std::string>> list;
    std::map<std::pair<std::string, std::string>, bool> seen;
    while (static_cast<int>(list.size()) < merges) {
        const std::pair pair{tokens[random() % tokens.size()], tokens[random() % tokens.size()]};
        if (pair.first.size() + pair.second.size() > 12 || !seen.emplace(pair, true).second)
            continue;
        list.push_back(pair);
        tokens.push_back(pair.first + pair.second);
    }
    json tokenizer = tiny_tokenizer(list);
    if (shuffled) {
        json& all = tokenizer["model"]["merges"];
        std::shuffle(all.begin(), all.end(), random);
    }
    return tokenizer;
}

}  // namespace

class BpeTokenizerTest : public QObject {
    Q_OBJECT

    std::unique_ptr<Tokenizer> demo_;

  private slots:
    void initTestCase() { demo_ = load_tokenizer(LONGVIEW_DEMO_MODEL); }

    void readsTheDemoTokenizer() {
        QCOMPARE(demo_->size(), TokenId{2027});
        QCOMPARE(demo_->end_of_answer(), TokenId{2021});
        QCOMPARE(demo_->special("<image>"), std::optional<TokenId>(2024));
        QCOMPARE(demo_->special("the"), std::optional<TokenId>());
        QVERIFY(demo_->is_special(2024) && !demo_->is_special(300) && !demo_->is_special(-1));
        QVERIFY(demo_->defined(0) && demo_->defined(2026) && !demo_->defined(2027));
        QVERIFY(demo_->bytes(2024).empty() && demo_->bytes(-5).empty() &&
                demo_->bytes(9999).empty());
        QCOMPARE(demo_->piece(2024), std::string_view("<image>"));
        const auto ids = demo_->encode("the harbour, the end");
        QCOMPARE(demo_->decode(ids), std::string("the harbour, the end"));
        QCOMPARE(demo_->encode(" the").size(), std::size_t{1});
        QCOMPARE(demo_->piece(demo_->encode(" the")[0]), std::string_view("Ġthe"));
        QVERIFY(demo_->encode("").empty());
    }

    void mergesLikeTheDefinition_data() {
        QTest::addColumn<bool>("shuffled");
        QTest::addColumn<int>("letters");
        QTest::newRow("merges in the order of training") << false << 3;
        QTest::newRow("merges in any order") << true << 3;
        QTest::newRow("one letter") << false << 1;
        QTest::newRow("one letter, any order") << true << 1;
    }
    void mergesLikeTheDefinition() {
        QFETCH(bool, shuffled);
        QFETCH(int, letters);
        std::mt19937 random(3);
        for (int round = 0; round < 12; ++round) {
            const json spec = random_bpe(random, static_cast<unsigned>(letters),
                                         letters == 1 ? 11 : 40, shuffled);
            const auto tokenizer = parse(spec);
            const ReferenceBpe reference(spec);
            for (int i = 0; i < 120; ++i) {
                const std::string word =
                    random_bytes(random, 1 + random() % 130, static_cast<unsigned>(letters));
                QCOMPARE(tokenizer->encode(word), reference.encode(word));
            }
        }
        // Long enough for the way that works rank by rank.
        const json spec =
            random_bpe(random, static_cast<unsigned>(letters), letters == 1 ? 11 : 40, shuffled);
        const std::string word = random_bytes(random, 4500, static_cast<unsigned>(letters));
        QCOMPARE(parse(spec)->encode(word), ReferenceBpe(spec).encode(word));
    }

    void ignoreMergesTakesWholeWords() {
        json spec = tiny_tokenizer({{"a", "b"}, {"b", "c"}});
        const int abc = static_cast<int>(spec["model"]["vocab"].size()) + 1;
        spec["model"]["vocab"]["abc"] = abc;
        QCOMPARE(parse(spec)->encode("abc"), (std::vector<TokenId>{256, 'c'}));
        spec["model"]["ignore_merges"] = true;
        QCOMPARE(parse(spec)->encode("abc"), (std::vector<TokenId>{abc}));
        QCOMPARE(parse(spec)->encode("abca"), (std::vector<TokenId>{256, 'c', 'a'}));
    }

    void givesBackAnyBytes() {
        std::mt19937 random(5);
        for (int round = 0; round < 100000; ++round) {
            const std::string text = random_bytes(random, random() % 24, 256);
            if (demo_->decode(demo_->encode(text)) != text) {
                QFAIL(qPrintable("lost bytes of " + QByteArray::fromStdString(text).toHex()));
            }
        }
        for (int b = 0; b < 256; ++b) {
            const std::string text(1, static_cast<char>(b));
            QCOMPARE(demo_->encode(text).size(), std::size_t{1});
            QCOMPARE(demo_->decode(demo_->encode(text)), text);
        }
    }

    void givesBackMixedTextWithBrokenCharacters() {
        std::mt19937 random(6);
        const std::string parts[] = {"Hello",   " world",       "\n\n", "\xE2\x82\xAC", "\xE2\x82",
                                     "\xFF",    "\xF0\x9F\x98", "漢字", "  ",           "12345",
                                     "\r\n",    "\0",           "it's", "\xED\xA0\x80", "é",
                                     "\xC0\xAF"};
        for (int round = 0; round < 3000; ++round) {
            std::string text;
            for (unsigned i = random() % 30; i > 0; --i) text += parts[random() % std::size(parts)];
            QCOMPARE(demo_->decode(demo_->encode(text)), text);
        }
    }

    void encodesInvalidBytesOneByOne() {
        const auto ids = demo_->encode("a\xFF\xE2\x82z");
        QCOMPARE(ids.size(), std::size_t{5});
        QCOMPARE(demo_->bytes(ids[1]), std::string_view("\xFF"));
        QCOMPARE(demo_->bytes(ids[2]), std::string_view("\xE2"));
    }

    void handlesVeryLongRuns() {
        for (const char* unit :
             {"a", " ", "\n", "7", "!", "\xFF", "漢", "a\xCC\x81", "ab", " \n"}) {
            std::string text;
            while (text.size() < 300000) text += unit;
            QCOMPARE(demo_->decode(demo_->encode(text)), text);
        }
    }

    void neverMakesSpecialTokensFromText() {
        std::vector<std::string> specials;
        for (TokenId id = 0; id < demo_->size(); ++id) {
            if (demo_->is_special(id)) specials.emplace_back(demo_->piece(id));
        }
        QCOMPARE(specials.size(), std::size_t{11});
        const std::string around[] = {"",  " ",    "\n",           "a",       "<",
                                      ">", "\xFF", "\xE2\x80\x8B", "<image>", "0"};
        std::mt19937 random(8);
        std::size_t contexts = 0;
        const auto check = [&](const std::string& text) {
            const auto ids = demo_->encode(text);
            ++contexts;
            for (const TokenId id : ids) QVERIFY2(!demo_->is_special(id), text.c_str());
            QCOMPARE(demo_->decode(ids), text);
        };
        for (const std::string& special : specials) {
            for (const std::string& before : around) {
                for (const std::string& after : around) check(before + special + after);
            }
            for (std::size_t cut = 0; cut <= special.size(); ++cut) {
                check(special.substr(0, cut));
                check(special.substr(cut));
                check(special.substr(0, cut) + "\xE2\x80\x8B" + special.substr(cut));  // zero width
                check(special.substr(0, cut) + special + special.substr(cut));
            }
        }
        for (int round = 0; round < 10000; ++round) {
            std::string text;
            for (unsigned i = random() % 12; i > 0; --i) {
                const std::string& special = specials[random() % specials.size()];
                text += random() % 2 == 0 ? special : around[random() % std::size(around)];
            }
            check(text);
        }
        QVERIFY(contexts > 11000);
    }

    void aSpecialTokenInTheVocabularyIsNotReachedByIgnoreMerges() {
        json spec = tiny_tokenizer();
        spec["model"]["vocab"]["<image>"] = 300;
        spec["model"]["ignore_merges"] = true;
        spec["added_tokens"].push_back(added_token(300, "<image>", true));
        QCOMPARE(parse(spec)->encode("<image>").size(), std::size_t{7});
    }

    void matchesPlainAddedTokensLongestFirst() {
        json spec = tiny_tokenizer();
        spec["added_tokens"].push_back(added_token(300, "<tool>", false));
        spec["added_tokens"].push_back(added_token(301, "<tool>call", false));
        spec["added_tokens"].push_back(added_token(302, "ol>", false));
        const auto tokenizer = parse(spec);
        QCOMPARE(tokenizer->encode("x<tool>y"), (std::vector<TokenId>{'x', 300, 'y'}));
        QCOMPARE(tokenizer->encode("<tool>call<tool>cal"),
                 (std::vector<TokenId>{301, 300, 'c', 'a', 'l'}));
        QCOMPARE(tokenizer->encode("<tol>"), (std::vector<TokenId>{'<', 't', 302}));
        QCOMPARE(tokenizer->decode(tokenizer->encode("a<tool>b<tool")),
                 std::string("a<tool>b<tool"));
        QVERIFY(!tokenizer->is_special(300));
        // What a longer added token could still take is not settled.
        std::vector<std::size_t> settled;
        const std::size_t ends[] = {std::string_view("abcdefghijkl<tool>").size()};
        tokenizer->encode_settled("abcdefghijkl<tool>x", ends, settled);
        QVERIFY(settled[0] <= 12);
    }

    void appliesNormalizers() {
        json spec = tiny_tokenizer();
        spec["normalizer"] = {
            {"type", "Sequence"},
            {"normalizers",
             {{{"type", "NFC"}},
              {{"type", "Replace"}, {"pattern", {{"String", "--"}}}, {"content", "-"}}}}};
        const auto tokenizer = parse(spec);
        QCOMPARE(tokenizer->decode(tokenizer->encode("e\xCC\x81 -- \xFF")),
                 std::string("\xC3\xA9 - \xFF"));
    }

    void addsAPrefixSpaceWhereTheFileSaysSo() {
        json spec = tiny_tokenizer();
        spec["pre_tokenizer"] = {
            {"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
        const auto tokenizer = parse(spec);
        QCOMPARE(tokenizer->encode("a b"), (std::vector<TokenId>{' ', 'a', ' ', 'b'}));
        QCOMPARE(tokenizer->encode(" a"), (std::vector<TokenId>{' ', 'a'}));
        QVERIFY(tokenizer->encode("").empty());
    }

    void allowsHolesInTheIds() {
        json spec = tiny_tokenizer();
        spec["model"]["vocab"]["zz"] = 400;
        const auto tokenizer = parse(spec);
        QCOMPARE(tokenizer->size(), TokenId{401});
        QVERIFY(!tokenizer->defined(399) && tokenizer->defined(400));
        QVERIFY(tokenizer->piece(399).empty());
    }

    void findsTheEndOfAnAnswer() {
        const json spec = tiny_tokenizer();
        QCOMPARE(parse(spec)->end_of_answer(), TokenId{256});
        QCOMPARE(parse(spec, R"({"eos_token": "a"})")->end_of_answer(), TokenId{'a'});
        QCOMPARE(parse(spec, R"({"eos_token": {"content": "b"}})")->end_of_answer(), TokenId{'b'});
        LONGVIEW_VERIFY_ERROR(parse(spec, R"({"eos_token": "nothing"})"),
                              ({QStringLiteral("input: "), QStringLiteral("\"nothing\"")}));
        json bare = spec;
        bare["added_tokens"] = json::array();
        LONGVIEW_VERIFY_ERROR(parse(bare),
                              ({QStringLiteral("unsupported: "), QStringLiteral("eos_token")}));
        BpeTokenizer::Files files;
        const std::string text = bare.dump();
        files.tokenizer = {text, "tokenizer.json"};
        files.generation_config = {R"({"eos_token_id": [99, 3]})", "generation_config.json"};
        QCOMPARE(BpeTokenizer(files).end_of_answer(), TokenId{99});
    }

    void refusesAConfigOfAnotherTokenizer() {
        const json spec = tiny_tokenizer();
        QVERIFY(parse(
            spec,
            R"({"added_tokens_decoder": {"256": {"content": "<end_of_sentence>", "special": true}}})"));
        for (
            const char* config :
            {R"({"added_tokens_decoder": {"256": {"content": "<eos>", "special": true}}})",
             R"({"added_tokens_decoder": {"256": {"content": "<end_of_sentence>", "special": false}}})",
             R"({"added_tokens_decoder": {"257": {"content": "<image>", "special": true}}})"}) {
            LONGVIEW_VERIFY_ERROR(parse(spec, config),
                                  ({QStringLiteral("input: "), QStringLiteral("do not belong")}));
        }
    }

    void refusesWhatItCannotFollow_data() {
        QTest::addColumn<QByteArray>("pointer");
        QTest::addColumn<QByteArray>("value");
        QTest::addColumn<QString>("error");
        const auto row = [](const char* name, const char* pointer, const char* value,
                            const char* error) {
            QTest::newRow(name) << QByteArray(pointer) << QByteArray(value)
                                << QString::fromUtf8(error);
        };
        row("no model", "/model", "null", "input: tokenizer.json: model.vocab is missing");
        row("another model", "/model/type", "\"WordPiece\"",
            "unsupported: tokenizer.json: the model type is \"WordPiece\"");
        row("dropout", "/model/dropout", "0.1", "unsupported: tokenizer.json: uses dropout");
        row("byte fallback", "/model/byte_fallback", "true", "byte_fallback");
        row("a suffix", "/model/end_of_word_suffix", "\"</w>\"", "end_of_word_suffix");
        row("a negative id", "/model/vocab/zz", "-1",
            "input: tokenizer.json: the id of \"zz\" is -1");
        row("a huge id", "/model/vocab/zz", "18446744073709551616", "the id of \"zz\"");
        row("an id beyond 2^24", "/model/vocab/zz", "16777216", "the id of \"zz\" is 16777216");
        row("a far id", "/model/vocab/zz", "16777215", "largest id is 16777215");
        row("a shared id", "/model/vocab/zz", "97", "the id 97 is given to both");
        row("no byte", "/model/vocab/a", "300", "no error");
        row("an unknown part", "/model/merges", R"([["a", "qq"]])",
            "merge 0 refers to a token that does not exist: \"qq\"");
        row("an unknown result", "/model/merges", R"(["a b"])", "merge 0 makes the token \"ab\"");
        row("no pair", "/model/merges", R"(["a"])", "merge 0 is \"a\"; expected two tokens");
        row("merges of merges", "/model/merges", R"([["a","b","c"]])", "merge 0 is a list of 3");
        row("merges missing", "/model/merges", "null", "model.merges is missing");
        row("no ByteLevel", "/pre_tokenizer", "null",
            "unsupported: tokenizer.json: has no ByteLevel");
        row("another pre-tokenizer", "/pre_tokenizer", R"({"type": "Metaspace"})", "\"Metaspace\"");
        row("another normalizer", "/normalizer", R"({"type": "Lowercase"})",
            "the normalizer \"Lowercase\"");
        row("another decoder", "/decoder", R"({"type": "WordPiece"})", "the decoder \"WordPiece\"");
        row("another post-processor", "/post_processor", R"({"type": "BertProcessing"})",
            "\"BertProcessing\"");
        row("an empty added token", "/added_tokens/0/content", "\"\"",
            "an added token has 0 bytes");
        row("an added token on a used id", "/added_tokens/0/id", "97", "has the id 97 of \"a\"");
        row("an added token that strips", "/added_tokens/0/lstrip", "true", "has lstrip");
        row("an added token without id", "/added_tokens/0/id", "null",
            "the id of \"<end_of_sentence>\" is null");
        row("added tokens of another kind", "/added_tokens", R"(["x"])", "is not an object");
    }
    void refusesWhatItCannotFollow() {
        QFETCH(QByteArray, pointer);
        QFETCH(QByteArray, value);
        QFETCH(QString, error);
        json spec = tiny_tokenizer();
        spec[json::json_pointer(pointer.toStdString())] = json::parse(value.toStdString());
        LONGVIEW_VERIFY_ERROR(parse(spec), ({error}));
    }

    void namesTheByteWithoutAToken() {
        json spec = tiny_tokenizer();
        spec["model"]["vocab"].erase("a");
        LONGVIEW_VERIFY_ERROR(parse(spec), ({QStringLiteral("no token for the byte 97")}));
    }

    void refusesMergesThatBuildASpecialToken() {
        json spec = tiny_tokenizer({{"<", "x"}});
        spec["added_tokens"].push_back(added_token(256, "<x", true));
        spec["added_tokens"][0]["id"] = 300;
        LONGVIEW_VERIFY_ERROR(parse(spec), ({QStringLiteral("involves the special token \"<x\"")}));
    }

    void refusesTheSameMergeTwice() {
        json spec = tiny_tokenizer({{"a", "b"}});
        spec["model"]["merges"].push_back("a b");
        LONGVIEW_VERIFY_ERROR(parse(spec), ({QStringLiteral("merge 1 repeats")}));
    }

    void survivesEveryTruncation() {
        const std::string text = tiny_tokenizer({{"a", "b"}}).dump();
        for (std::size_t length = 0; length < text.size(); length += 7) {
            LONGVIEW_VERIFY_ERROR(parse_bpe_tokenizer(text.substr(0, length), {}, "tokenizer.json"),
                                  ({QStringLiteral("input: tokenizer.json")}));
        }
    }

    void namesAFolderWithoutTokenizer() {
        LONGVIEW_VERIFY_ERROR(load_tokenizer(LONGVIEW_TEST_DATA),
                              ({QStringLiteral("not found: "), QStringLiteral("tokenizer.json")}));
    }

    void encodesTheSameFromSeveralThreads() {
        const auto tokenizer = load_tokenizer(LONGVIEW_DEMO_MODEL);
        std::string text;
        for (TokenId id = 0; id < 2016; ++id) text.append(demo_->bytes(id)).append(" ");
        const auto expected = demo_->encode(text);
        std::vector<std::vector<TokenId>> results(4);
        std::vector<std::thread> threads;
        for (auto& result : results)
            threads.emplace_back([&] { result = tokenizer->encode(text); });
        for (std::thread& thread : threads) thread.join();
        for (const auto& result : results) QCOMPARE(result, expected);
    }
};

QTEST_GUILESS_MAIN(BpeTokenizerTest)
#include "bpe_tokenizer_test.moc"

// SentencePiece models: one trained here, and damaged copies of it.
#include <sentencepiece_trainer.h>

#include <QTest>
#include <random>

#include "errors.h"
#include "llm/tokenizer/sentencepiece_model.h"
#include "llm/tokenizer/tokenizer.h"
#include "llm/tokenizer/utf8.h"

using namespace longview::llm;

namespace {

/// Hands a list of sentences to the trainer.
class Sentences final : public sentencepiece::SentenceIterator {
  public:
    explicit Sentences(std::vector<std::string> sentences) : sentences_(std::move(sentences)) {}
    bool done() const override { return at_ == sentences_.size(); }
    void Next() override { ++at_; }
    const std::string& value() const override { return sentences_[at_]; }
    sentencepiece::util::Status status() const override { return {}; }

  private:
    std::vector<std::string> sentences_;
    std::size_t at_ = 0;
};

/// A model trained on made-up words, the same at every run.
std::string train(const std::string& kind, const std::string& normalization, bool dummy_prefix) {
    std::mt19937 random(4);
    const std::string syllables[] = {"ba",  "ko", "ri",  "ten", "al", "mü",
                                     "sel", "on", "tra", "漢",  "字"};
    std::vector<std::string> words(60);
    for (std::string& word : words) {
        for (unsigned i = 1 + random() % 3; i > 0; --i)
            word += syllables[random() % std::size(syllables)];
    }
    std::vector<std::string> sentences(300);
    for (std::string& sentence : sentences) {
        for (unsigned i = 2 + random() % 9; i > 0; --i) {
            sentence += words[random() % words.size()] + (random() % 5 == 0 ? ", " : " ");
        }
        sentence += "end.";
    }
    const std::unordered_map<std::string, std::string> options{
        {"model_type", kind},
        {"vocab_size", "420"},
        {"hard_vocab_limit", "false"},
        {"byte_fallback", "true"},
        {"character_coverage", "1.0"},
        {"normalization_rule_name", normalization},
        {"add_dummy_prefix", dummy_prefix ? "true" : "false"},
        {"remove_extra_whitespaces", "false"},
        {"control_symbols", "<turn>"},
        {"user_defined_symbols", "<tool>"},
        {"num_threads", "1"},
        {"minloglevel", "3"}};
    Sentences iterator(std::move(sentences));
    std::string model;
    const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, &model);
    if (!status.ok()) throw std::runtime_error(status.ToString());
    return model;
}

std::unique_ptr<Tokenizer> parse(std::string_view model) {
    return parse_sentencepiece_tokenizer(model, "tokenizer.model");
}

std::string random_text(std::mt19937& random) {
    const std::string parts[] = {"bako",         " ",    "  ",    "rital",  "漢字",   "\n",
                                 "<s>",          "</s>", "<unk>", "<turn>", "<tool>", "<0x41>",
                                 "\xE2\x96\x81", "é",    "🙂",  "\t",     "sel ",   "x"};
    std::string text;
    for (unsigned i = random() % 20; i > 0; --i) {
        if (random() % 6 == 0) {
            char32_t code = random() % 0x110000;
            if (code >= 0xD800 && code < 0xE000) code = U'y';
            append_utf8(text, code);
        } else {
            text += parts[random() % std::size(parts)];
        }
    }
    return text;
}

/// Changes a few bytes, lengths or places of a file.
std::string mutate(std::string file, std::mt19937& random) {
    for (unsigned i = 1 + random() % 4; i > 0 && !file.empty(); --i) {
        const std::size_t at = random() % file.size();
        switch (random() % 5) {
            case 0:
                file[at] = static_cast<char>(random());
                break;
            case 1:
                file[at] = static_cast<char>(file[at] ^ (1 << random() % 8));
                break;
            case 2:
                file.erase(at, 1 + random() % 9);
                break;
            case 3:
                file.insert(at, 1 + random() % 9, static_cast<char>(random()));
                break;
            default:
                file.insert(at, file.substr(random() % file.size(), random() % 40));
                break;
        }
    }
    return file;
}

}  // namespace

class SentencePieceTest : public QObject {
    Q_OBJECT

    std::string unigram_, bpe_, nfkc_;

  private slots:
    void initTestCase() {
        unigram_ = train("unigram", "identity", false);
        bpe_ = train("bpe", "identity", false);
        nfkc_ = train("unigram", "nmt_nfkc", true);
    }

    void givesBackAnyText_data() {
        QTest::addColumn<bool>("bpe");
        QTest::newRow("unigram") << false;
        QTest::newRow("BPE") << true;
    }
    void givesBackAnyText() {
        QFETCH(bool, bpe);
        const auto tokenizer = parse(bpe ? bpe_ : unigram_);
        std::mt19937 random(9);
        for (int round = 0; round < 5000; ++round) {
            const std::string text = random_text(random);
            const auto ids = tokenizer->encode(text);
            QCOMPARE(tokenizer->decode(ids), text);
            for (const TokenId id : ids) QVERIFY(!tokenizer->is_special(id));
        }
        for (int round = 0; round < 2000; ++round) {
            std::string bytes(random() % 12, ' ');
            for (char& c : bytes) c = static_cast<char>(random());
            QCOMPARE(tokenizer->decode(tokenizer->encode(bytes)), bytes);
        }
        QVERIFY(tokenizer->encode("").empty());
    }

    void usesThePiecesOfTheModel() {
        const auto tokenizer = parse(unigram_);
        const auto ids = tokenizer->encode("end. end.");
        QVERIFY(ids.size() < 8);
        QCOMPARE(tokenizer->special("<s>"), std::optional<TokenId>(1));
        QCOMPARE(tokenizer->special("</s>"), std::optional<TokenId>(2));
        QCOMPARE(tokenizer->end_of_answer(), TokenId{2});
        QVERIFY(tokenizer->special("<turn>") && !tokenizer->special("<tool>"));
        QVERIFY(tokenizer->is_special(*tokenizer->special("<turn>")));
        QVERIFY(tokenizer->bytes(1).empty() && tokenizer->bytes(-1).empty());
        QCOMPARE(tokenizer->piece(2), std::string_view("</s>"));
        QVERIFY(!tokenizer->defined(tokenizer->size()) && tokenizer->defined(0));
    }

    void cutsLongTextWithoutChangingTheIds() {
        const auto tokenizer = parse(bpe_);
        std::string text, unit = " bako rital  漢字, tensel end.";
        while (text.size() < 300000) text += unit;
        const auto ids = tokenizer->encode(text);
        QCOMPARE(tokenizer->decode(ids), text);
        // Every repetition is encoded alike, wherever the cuts were.
        const auto once = tokenizer->encode(unit);
        const auto twice = tokenizer->encode(unit + unit);
        const std::size_t period = twice.size() - once.size();
        for (std::size_t i = once.size(); i + period < ids.size(); ++i)
            QCOMPARE(ids[i], ids[i + period]);
    }

    void normalisesAndPrefixesWhereTheModelSaysSo() {
        const auto tokenizer = parse(nfkc_);
        QCOMPARE(tokenizer->decode(tokenizer->encode("ｂａ ko")), std::string(" ba ko"));
        QCOMPARE(tokenizer->decode(tokenizer->encode("\xFF")), std::string(" \xFF"));
    }

    void refusesWhatTheLibraryWouldDieOf_data() {
        QTest::addColumn<QByteArray>("file");
        QTest::addColumn<QString>("error");
        const auto row = [](const char* name, const std::string& file, const char* error) {
            QTest::newRow(name) << QByteArray::fromStdString(file) << QString::fromUtf8(error);
        };
        const auto changed = [this](const auto& change) {
            SentencePieceModel model = parse_sentencepiece_model(unigram_, "x");
            change(model);
            return serialize_for_library(model);
        };
        using Model = SentencePieceModel;
        using Type = Model::Type;
        row("nothing", "", "it has 0 unknown pieces");
        row("text", "version https://git-lfs", "not a valid SentencePiece model");
        row("a length beyond the end", "\x0A\xFF\xFF\xFF\xFF\x07",
            "has 2147483647 bytes, but only 0 are left (byte 6)");
        row("an endless number", std::string("\x0A") + std::string(11, '\xFF'),
            "more than 64 bits");
        row("NaN", changed([](Model& m) { m.pieces[300].score = NAN; }), "not a sensible number");
        row("an infinite score", changed([](Model& m) { m.pieces[300].score = -INFINITY; }),
            "not a sensible number");
        row("an empty piece", changed([](Model& m) { m.pieces[300].text.clear(); }),
            "a piece has 0 bytes");
        row("a long piece", changed([](Model& m) { m.pieces[300].text.assign(600, 'a'); }),
            "a piece has 600 bytes");
        row("invalid UTF-8", changed([](Model& m) { m.pieces[300].text = "\xE2\x96"; }),
            "not valid UTF-8");
        row("a NUL", changed([](Model& m) { m.pieces[300].text = std::string("a\0b", 3); }),
            "not valid UTF-8");
        row("a piece twice", changed([](Model& m) { m.pieces[300].text = m.pieces[301].text; }),
            "is there twice");
        row("two unknown pieces", changed([](Model& m) { m.pieces[300].type = Type::kUnknown; }),
            "2 unknown pieces");
        row("a control piece of one letter", changed([](Model& m) {
                m.pieces[300] = {"q", 0, Type::kControl};
            }),
            "has one character only");
        row("an unknown type", changed([](Model& m) { m.pieces[300].type = static_cast<Type>(9); }),
            "unknown type");
        row("a missing byte", changed([](Model& m) {
                for (auto& piece : m.pieces) {
                    if (piece.text == "<0x41>") piece.type = Type::kNormal;
                }
            }),
            "255 byte pieces");
        row("a byte that is none", changed([](Model& m) {
                m.pieces[300] = {"<0xZZ>", 0, Type::kByte};
            }),
            "\"<0xZZ>\"");
        row("no bytes", changed([](Model& m) {
                for (auto& piece : m.pieces) {
                    if (piece.type == Type::kByte) piece.type = Type::kNormal;
                }
            }),
            "unsupported: tokenizer.model: has no byte pieces");
        row("no end", changed([](Model& m) { m.pieces[2].text = "</other>"; }),
            "has no control piece \"</s>\"");
        row("a word model", changed([](Model& m) { m.kind = static_cast<Model::Kind>(3); }),
            "the model type is 3");
        row("nested symbols", changed([](Model& m) {
                for (int i = 0; i < 60; ++i)
                    m.pieces.push_back({std::string(i + 2, '#'), 0, Type::kUserDefined});
            }),
            "more than 48 user-defined symbols");
        const auto with_table = [&](std::string table) {
            return changed([&](Model& m) { m.charsmap = std::move(table); });
        };
        row("a table cut off", with_table("ab"), "table is cut off");
        row("a trie beyond the table", with_table(std::string("\xFF\xFF\0\0abcd", 8)),
            "has a trie of 65535 bytes");
        row("a trie that leads out", with_table(std::string("\x04\0\0\0\0\xFF\xFF\x7F\0", 9)),
            "leads out of its trie");
    }
    void refusesWhatTheLibraryWouldDieOf() {
        QFETCH(QByteArray, file);
        QFETCH(QString, error);
        LONGVIEW_VERIFY_ERROR(parse(file.toStdString()), ({error}));
    }

    void checksEveryWayThroughTheNormalisationTable() {
        const std::string good = parse_sentencepiece_model(nfkc_, "x").charsmap;
        QVERIFY(good.size() > 100000);
        check_charsmap(good, "x");
        // A table of one block: the root's offset is 0, so label c leads to unit c. Its own label
        // is one that nothing follows.
        std::vector<std::uint32_t> units(256);
        units[0] = 255;
        const auto table = [&](const std::string& texts) {
            std::string out;
            const auto put = [&out](std::uint32_t v) {
                for (int shift = 0; shift < 32; shift += 8)
                    out.push_back(static_cast<char>(v >> shift));
            };
            put(1024);
            for (const std::uint32_t unit : units) put(unit);
            return out + texts;
        };
        check_charsmap(table(std::string("x\0", 2)), "x");
        units['a'] = 'a' | 1U << 8 | ('a' ^ 'b') << 10;  // has a value, kept at unit 'b'
        units['b'] = 0x80000000U | 0;
        check_charsmap(table(std::string("x\0", 2)), "x");
        LONGVIEW_VERIFY_ERROR((check_charsmap(table("x"), "x"), 0),
                              ({QStringLiteral("texts without an end")}));
        LONGVIEW_VERIFY_ERROR((check_charsmap(table(std::string("\xFF\0", 2)), "x"), 0),
                              ({QStringLiteral("not UTF-8")}));
        units['b'] = 0x80000000U | 2;
        LONGVIEW_VERIFY_ERROR((check_charsmap(table(std::string("x\0", 2)), "x"), 0),
                              ({QStringLiteral("outside of its texts")}));
        units['b'] = 0;
        units['a'] = 'a' | 'a' << 10;  // node 'a' leads by 'a' to 'a' ^ 'a' ^ 'a': itself
        LONGVIEW_VERIFY_ERROR((check_charsmap(table(std::string("x\0", 2)), "x"), 0),
                              ({QStringLiteral("back into itself")}));
    }

    void survivesDamagedFiles() {
        // Whatever is accepted must be usable.
        std::mt19937 random(13);
        int accepted = 0;
        for (const std::string& file : {unigram_, bpe_}) {
            for (int round = 0; round < 4000; ++round) {
                const std::string damaged = mutate(file, random);
                try {
                    const auto tokenizer = parse(damaged);
                    ++accepted;
                    const std::string text = random_text(random);
                    const auto ids = tokenizer->encode(text);
                    for (const TokenId id : ids) QVERIFY(!tokenizer->is_special(id));
                } catch (const longview::Error& error) {
                    QVERIFY(std::string_view(error.what()).starts_with("tokenizer.model: "));
                }
            }
        }
        QVERIFY2(accepted > 100, "too few mutants reach the library");
    }

    void survivesEveryTruncation() {
        for (std::size_t length = 0; length < unigram_.size(); length += 3) {
            try {
                parse(std::string_view(unigram_).substr(0, length));
            } catch (const longview::Error& error) {
                QVERIFY(std::string_view(error.what()).starts_with("tokenizer.model: "));
            }
        }
    }
};

QTEST_GUILESS_MAIN(SentencePieceTest)
#include "sentencepiece_test.moc"

// Streaming gives whole characters only, and the same text as decoding at once.
#include <QTest>
#include <random>

#include "llm/tokenizer/tokenizer.h"
#include "llm/tokenizer/utf8.h"

using namespace longview::llm;

class StreamDecoderTest : public QObject {
    Q_OBJECT

    std::unique_ptr<Tokenizer> tokenizer_;

    /// The one-byte tokens of `bytes`.
    std::vector<TokenId> byte_ids(std::string_view bytes) {
        std::vector<TokenId> ids;
        for (const char c : bytes) ids.push_back(tokenizer_->encode(std::string(1, c)).at(0));
        return ids;
    }

    std::string stream(const std::vector<TokenId>& ids, bool* whole = nullptr) {
        StreamDecoder decoder(*tokenizer_);
        std::string text;
        for (const TokenId id : ids) {
            const std::string piece = decoder.push(id);
            if (whole != nullptr) *whole &= valid_utf8_prefix(piece) == piece.size();
            text += piece;
        }
        return text + decoder.finish();
    }

  private slots:
    void initTestCase() { tokenizer_ = load_tokenizer(LONGVIEW_DEMO_MODEL); }

    void holdsBackAnIncompleteCharacter() {
        StreamDecoder decoder(*tokenizer_);
        const auto ids = byte_ids("a\xF0\x9F\x98\x80z");  // U+1F600
        const char* const expected[] = {"a", "", "", "", "\xF0\x9F\x98\x80", "z"};
        for (std::size_t i = 0; i < ids.size(); ++i) {
            QCOMPARE(decoder.push(ids[i]), std::string(expected[i]));
        }
        QCOMPARE(decoder.finish(), std::string());
    }

    void replacesInvalidBytes_data() {
        QTest::addColumn<QByteArray>("bytes");
        QTest::addColumn<QByteArray>("text");
        const auto row = [](const char* name, const char* bytes, const char* text) {
            QTest::newRow(name) << QByteArray(bytes) << QByteArray(text);
        };
        row("a lone continuation byte", "a\x80z", "a\xEF\xBF\xBDz");
        row("cut by another character", "\xE2\x82z", "\xEF\xBF\xBDz");
        row("cut by the end", "z\xE2\x82", "z\xEF\xBF\xBD");
        row("overlong", "\xC0\xAF", "\xEF\xBF\xBD\xEF\xBF\xBD");
        row("a surrogate", "\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
        row("beyond Unicode", "\xF4\x90\x80\x80",
            "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
        // Table 3-11 of the Unicode standard.
        row("maximal subparts",
            "a\xF1\x80\x80\xE1\x80\xC2"
            "b\x80"
            "c\x80\xBF"
            "d",
            "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
            "b\xEF\xBF\xBD"
            "c\xEF\xBF\xBD\xEF\xBF\xBD"
            "d");
    }
    void replacesInvalidBytes() {
        QFETCH(QByteArray, bytes);
        QFETCH(QByteArray, text);
        QCOMPARE(stream(byte_ids(bytes.toStdString())), text.toStdString());
    }

    void givesTheWholeTextInWholeCharacters() {
        std::mt19937 random(11);
        for (int round = 0; round < 2000; ++round) {
            std::string text;
            for (unsigned i = random() % 40; i > 0; --i) {
                char32_t code = random() % 4 == 0 ? random() % 0x110000 : random() % 0x500;
                if (code >= 0xD800 && code < 0xE000) code = U'x';
                append_utf8(text, code);
            }
            bool whole = true;
            QCOMPARE(stream(tokenizer_->encode(text), &whole), text);
            QCOMPARE(stream(byte_ids(text), &whole), text);
            QVERIFY(whole);
        }
    }

    void isValidUtf8ForRandomIds() {
        std::mt19937 random(12);
        for (int round = 0; round < 2000; ++round) {
            std::vector<TokenId> ids;
            for (unsigned i = random() % 60; i > 0; --i) {
                ids.push_back(static_cast<TokenId>(random() % 2100) - 20);
            }
            bool whole = true;
            const std::string text = stream(ids, &whole);
            QVERIFY(whole);
            QCOMPARE(valid_utf8_prefix(text), text.size());
        }
    }
};

QTEST_GUILESS_MAIN(StreamDecoderTest)
#include "stream_decoder_test.moc"

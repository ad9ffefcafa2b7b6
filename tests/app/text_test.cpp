// UTF-8 checks and what a terminal may be shown.
#include "app/core/text.h"

#include <QTest>
#include <string>

#include "kernels/runtime/error.h"

using namespace longview;
using namespace longview::app;

class TextTest : public QObject {
    Q_OBJECT

  private slots:
    void acceptsEveryScalarValueAndNoSurrogate();
    void namesTheFirstWrongByte_data();
    void namesTheFirstWrongByte();
    void saysWhichTextIsNotUtf8();
    void makesControlCharactersVisible();
    void keepsOrReplacesLineEndsAsAsked();
};

void TextTest::acceptsEveryScalarValueAndNoSurrogate() {
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
        std::string text;
        append_utf8(text, c);
        const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
        if (find_invalid_utf8(text).has_value() != surrogate) QFAIL("wrong at a code point");
    }
}

void TextTest::namesTheFirstWrongByte_data() {
    QTest::addColumn<QByteArray>("text");
    QTest::addColumn<int>("offset");
    QTest::newRow("lone continuation") << QByteArray("ab\x80") << 2;
    QTest::newRow("truncated") << QByteArray("ab\xE2\x82") << 2;
    QTest::newRow("overlong slash") << QByteArray("\xC0\xAF") << 0;
    QTest::newRow("overlong three") << QByteArray("x\xE0\x80\xAF") << 1;
    QTest::newRow("overlong four") << QByteArray("\xF0\x8F\xBF\xBF") << 0;
    QTest::newRow("surrogate") << QByteArray("\xED\xA0\x80") << 0;
    QTest::newRow("above U+10FFFF") << QByteArray("\xF4\x90\x80\x80") << 0;
    QTest::newRow("five bytes") << QByteArray("\xF8\x88\x80\x80\x80") << 0;
    QTest::newRow("latin-1") << QByteArray("caf\xE9 au lait") << 3;
    QTest::newRow("after a long one") << QByteArray("\xF0\x9F\x98\x80\xFF") << 4;
}

void TextTest::namesTheFirstWrongByte() {
    QFETCH(QByteArray, text);
    QFETCH(int, offset);
    const auto found = find_invalid_utf8(text.toStdString());
    QVERIFY(found.has_value());
    QCOMPARE(static_cast<int>(*found), offset);
}

void TextTest::saysWhichTextIsNotUtf8() {
    require_utf8("Grüße", "the question");
    try {
        require_utf8("Gr\xFC\xDF", "the question");
        QFAIL("accepted");
    } catch (const Error& error) {
        QCOMPARE(error.category(), Category::kInput);
        const QString sentence = error.what();
        QVERIFY(sentence.contains("the question"));
        QVERIFY(sentence.contains("offset 2"));
    }
}

void TextTest::makesControlCharactersVisible() {
    const std::string replaced = "\xEF\xBF\xBD";
    QCOMPARE(printable("\x1b[31mred"), replaced + "[31mred");
    QCOMPARE(printable("a\x7F"), "a" + replaced);
    QCOMPARE(printable("a\r\x08"), "a" + replaced + replaced);
    QCOMPARE(printable("csi \xC2\x9B"), "csi " + replaced);  // U+009B
    QCOMPARE(printable("\xC2\xA0\xE2\x82\xAC"), std::string("\xC2\xA0\xE2\x82\xAC"));
    QCOMPARE(printable("bad \xFF\xE2\x82"), "bad " + replaced + replaced + replaced);
    QCOMPARE(printable(std::string_view("\0", 1)), replaced);
}

void TextTest::keepsOrReplacesLineEndsAsAsked() {
    QCOMPARE(printable("a\n\tb"), std::string("a\n\tb"));
    QCOMPARE(printable("a\n\tb", true), std::string("a  b"));
}

QTEST_GUILESS_MAIN(TextTest)
#include "text_test.moc"

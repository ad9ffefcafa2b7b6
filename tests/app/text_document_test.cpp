// Text and Markdown files as pages, and their form in the prompt.
#include "app/documents/text_document.h"

#include <QFile>
#include <QTemporaryDir>
#include <QTest>
#include <string>

#include "kernels/runtime/error.h"

using namespace longview;
using namespace longview::app;
using namespace std::string_literals;
using Pages = std::vector<std::string>;

namespace {

struct Refusal {
    Category category = Category::kBug;
    QString sentence;
};

template <typename Action>
Refusal refusal_of(Action action) {
    try {
        action();
    } catch (const Error& error) {
        return {error.category(), error.what()};
    }
    return {};
}

}  // namespace

class TextDocumentTest : public QObject {
    Q_OBJECT

  private slots:
    void splitsPagesAtFormFeedsAndKeepsBlankOnes();
    void changesNothingButLineEnds();
    void readsUtf8AndUtf16ByTheirMarks();
    void namesTheWrongByte_data();
    void namesTheWrongByte();
    void refusesOtherFormatsByContent_data();
    void refusesOtherFormatsByContent();
    void refusesEmptyText();
    void putsOnePageIntoThePromptWithoutMarks();
    void marksEachOfSeveralPages();
    void doesNotLetANameBreakTheFormat();
    void readsFilesWithinTheLimit();
    void readsTheSampleReport();
};

void TextDocumentTest::splitsPagesAtFormFeedsAndKeepsBlankOnes() {
    QCOMPARE(parse_pages("one", "t"), Pages({"one"}));
    QCOMPARE(parse_pages("one\ftwo", "t"), Pages({"one", "two"}));
    QCOMPARE(parse_pages("one\n\f\n\fthree\n", "t"), Pages({"one\n", "\n", "three\n"}));
    QCOMPARE(parse_pages("\ftwo", "t"), Pages({"", "two"}));
    // As pdftotext writes: a form feed after every page.
    QCOMPARE(parse_pages("one\n\ftwo\n\f", "t"), Pages({"one\n", "two\n"}));
}

void TextDocumentTest::changesNothingButLineEnds() {
    QCOMPARE(parse_pages("a\r\nb\rc\nd\r\n\r\n", "t"), Pages({"a\nb\nc\nd\n\n"}));
    QCOMPARE(parse_pages("a\r", "t"), Pages({"a\n"}));
    const std::string kept = "  # Title \t\n\n\x1b[1m \v <image> \xF0\x9F\x98\x80";
    QCOMPARE(parse_pages(kept, "t"), Pages({kept}));
}

void TextDocumentTest::readsUtf8AndUtf16ByTheirMarks() {
    QCOMPARE(parse_pages("\xEF\xBB\xBFGr\xC3\xBC\xC3\x9F", "t"), Pages({"Grüß"}));
    QCOMPARE(parse_pages("\xFF\xFEG\0\xFC\0=\xD8\x00\xDE"s, "t"), Pages({"Gü😀"}));
    QCOMPARE(parse_pages("\xFE\xFF\0G\0\xFC\xD8=\xDE\x00\0\r\0\n"s, "t"), Pages({"Gü😀\n"}));
}

void TextDocumentTest::namesTheWrongByte_data() {
    QTest::addColumn<QByteArray>("bytes");
    QTest::addColumn<QString>("offset");
    const auto row = [](const char* name, const std::string& bytes, const char* offset) {
        QTest::newRow(name) << QByteArray::fromStdString(bytes) << QString(offset);
    };
    row("latin-1", "caf\xE9 au lait", "offset 3.");
    row("after the mark", "\xEF\xBB\xBF\xFF", "offset 3.");
    row("cut in a character", "a\xE2\x82", "offset 1.");
    row("NUL", "text\0text"s, "offset 4.");
    row("UTF-16, odd length", "\xFF\xFEG\0\x30"s, "offset 4.");
    row("UTF-16, lone high surrogate", "\xFF\xFE=\xD8G\0"s, "offset 2.");
    row("UTF-16, lone low surrogate", "\xFE\xFF\0G\xDE\x00"s, "offset 4.");
    row("UTF-16, high surrogate at the end", "\xFE\xFF\xD8="s, "offset 2.");
    row("UTF-16, NUL", "\xFE\xFF\0G\0\0"s, "offset 4.");
}

void TextDocumentTest::namesTheWrongByte() {
    QFETCH(QByteArray, bytes);
    QFETCH(QString, offset);
    const Refusal refusal = refusal_of([&] { parse_pages(bytes.toStdString(), "notes.txt"); });
    QCOMPARE(refusal.category, Category::kInput);
    QVERIFY2(refusal.sentence.contains(offset), qPrintable(refusal.sentence));
    QVERIFY(refusal.sentence.startsWith("notes.txt"));
}

void TextDocumentTest::refusesOtherFormatsByContent_data() {
    QTest::addColumn<QByteArray>("bytes");
    QTest::addColumn<QString>("word");
    QTest::newRow("pdf") << QByteArray("%PDF-1.7\n") << "PDF";
    QTest::newRow("docx") << QByteArray("PK\x03\x04rest") << "DOCX";
    QTest::newRow("doc") << QByteArray("\xD0\xCF\x11\xE0rest") << "Office";
    QTest::newRow("rtf") << QByteArray("{\\rtf1 text}") << "RTF";
    QTest::newRow("png") << QByteArray("\x89PNG\r\n") << "picture";
    QTest::newRow("jpeg") << QByteArray("\xFF\xD8\xFF\xE0") << "picture";
    QTest::newRow("utf-32") << QByteArray("\xFF\xFE\0\0t\0\0\0", 8) << "UTF-32";
}

void TextDocumentTest::refusesOtherFormatsByContent() {
    QFETCH(QByteArray, bytes);
    QFETCH(QString, word);
    const Refusal refusal = refusal_of([&] { parse_pages(bytes.toStdString(), "notes.txt"); });
    QCOMPARE(refusal.category, Category::kUnsupported);
    QVERIFY2(refusal.sentence.contains(word), qPrintable(refusal.sentence));
}

void TextDocumentTest::refusesEmptyText() {
    for (const char* text : {"", " \r\n\t\f\n", "\xEF\xBB\xBF"}) {
        QCOMPARE(refusal_of([&] { parse_pages(text, "t"); }).category, Category::kInput);
    }
}

void TextDocumentTest::putsOnePageIntoThePromptWithoutMarks() {
    QCOMPARE(document_prompt({"a.md", {"TEXT"}}),
             std::string("<document name=\"a.md\">\nTEXT\n</document>\n\n"));
    // A line end at the end of the file is the one in front of </document>.
    QCOMPARE(document_prompt({"a.md", {"TEXT\n"}}),
             std::string("<document name=\"a.md\">\nTEXT\n</document>\n\n"));
}

void TextDocumentTest::marksEachOfSeveralPages() {
    QCOMPARE(document_prompt({"a.md", {"ONE\n\n", "", "THREE"}}),
             std::string("<document name=\"a.md\">\n[page 1]\nONE\n\n[page 2]\n[page 3]\nTHREE\n"
                         "</document>\n\n"));
}

void TextDocumentTest::doesNotLetANameBreakTheFormat() {
    QCOMPARE(document_name("a\">\n</document>\t.txt"), std::string("a'> </document> .txt"));
    QCOMPARE(document_name("Bericht Größe.txt"), std::string("Bericht Größe.txt"));
    QCOMPARE(document_name("\xFF\x01.txt"), std::string("\uFFFD\uFFFD.txt"));
}

void TextDocumentTest::readsFilesWithinTheLimit() {
    const QTemporaryDir folder;
    const QString path = folder.filePath("large.txt");
    QFile file(path);
    QVERIFY(file.open(QIODevice::WriteOnly));
    file.write("text\n");
    // The size alone is refused: a sparse file costs no disk.
    QVERIFY(file.resize(static_cast<qint64>(kMaxDocumentBytes) + 1));
    file.close();
    const Refusal refusal = refusal_of([&] { read_text_document(path.toStdString()); });
    QCOMPARE(refusal.category, Category::kInput);
    QVERIFY2(refusal.sentence.contains("64 MiB"), qPrintable(refusal.sentence));
    QCOMPARE(refusal_of([&] { read_text_document(folder.path().toStdString()); }).category,
             Category::kInput);
    QCOMPARE(refusal_of([&] { read_text_document("/no/such.txt"); }).category, Category::kNotFound);
}

void TextDocumentTest::readsTheSampleReport() {
    const Document document = read_text_document(LONGVIEW_DEMO_MODEL "/../samples/report.txt");
    QCOMPARE(document.name, std::string("report.txt"));
    QCOMPARE(document.pages.size(), std::size_t{3});
    const std::string prompt = document_prompt(document);
    QVERIFY(prompt.starts_with("<document name=\"report.txt\">\n[page 1]\nProject report 2008"));
    QVERIFY(prompt.find("\n\n[page 3]\n") != std::string::npos);
}

QTEST_GUILESS_MAIN(TextDocumentTest)
#include "text_document_test.moc"

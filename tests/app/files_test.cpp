// Reading and replacing whole files, base64, and the place of the demo model.
#include "app/core/files.h"

#include <sys/stat.h>

#include <QFile>
#include <QTemporaryDir>
#include <QTest>
#include <string>

#include "app/core/base64.h"
#include "app/core/resources.h"
#include "kernels/runtime/error.h"

using namespace longview;
using namespace longview::app;

namespace {

template <typename Action>
Category category_of(Action action) {
    try {
        action();
    } catch (const Error& error) {
        return error.category();
    }
    return Category::kBug;
}

}  // namespace

class FilesTest : public QObject {
    Q_OBJECT

  private slots:
    void readsWhatWasWritten();
    void replacesAFileAndLeavesNothingElseBehind();
    void keepsTheOldFileWhenTheNewOneCannotBeWritten();
    void refusesWhatIsNotARegularFile();
    void refusesMoreThanTheLimit();
    void readsFilesThatDoNotKnowTheirSize();
    void writesBytesForPeople();
    void base64RoundTripsEveryLengthAndByte();
    void base64RefusesDamagedText_data();
    void base64RefusesDamagedText();
    void prefersTheModelNamedInTheEnvironment();

  private:
    std::string path(const char* name) const { return folder_.filePath(name).toStdString(); }
    QTemporaryDir folder_;
};

void FilesTest::readsWhatWasWritten() {
    const std::string bytes("a\0b\n\xFF", 5);
    write_file_atomically(path("bytes"), bytes);
    QCOMPARE(read_file(path("bytes"), 5), bytes);
    write_file_atomically(path("empty"), "");
    QCOMPARE(read_file(path("empty"), 0), std::string());
}

void FilesTest::replacesAFileAndLeavesNothingElseBehind() {
    const QTemporaryDir folder;
    const std::string file = folder.filePath("file").toStdString();
    write_file_atomically(file, "old");
    write_file_atomically(file, "new");
    QCOMPARE(read_file(file, 10), std::string("new"));
    QCOMPARE(QDir(folder.path()).entryList(QDir::Files | QDir::Hidden), QStringList("file"));
}

void FilesTest::keepsTheOldFileWhenTheNewOneCannotBeWritten() {
    // A folder in the place of the file: rename fails after everything was written.
    const QTemporaryDir folder;
    QVERIFY(QDir(folder.path()).mkdir("taken"));
    const std::string taken = folder.filePath("taken").toStdString();
    QCOMPARE(category_of([&] { write_file_atomically(taken, "x"); }), Category::kIo);
    QCOMPARE(QDir(folder.path()).entryList(QDir::Files | QDir::Hidden), QStringList());
    QCOMPARE(category_of([&] { write_file_atomically(path("no/such/folder"), "x"); }),
             Category::kNotFound);
}

void FilesTest::refusesWhatIsNotARegularFile() {
    QCOMPARE(category_of([&] { read_file(path("missing"), 10); }), Category::kNotFound);
    QCOMPARE(category_of([&] { read_file(folder_.path().toStdString(), 10); }), Category::kInput);
    QCOMPARE(category_of([&] { read_file("/dev/zero", 10); }), Category::kInput);
    const std::string fifo = path("fifo");
    QCOMPARE(::mkfifo(fifo.c_str(), 0600), 0);
    QCOMPARE(category_of([&] { read_file(fifo, 10); }), Category::kInput);
}

void FilesTest::refusesMoreThanTheLimit() {
    write_file_atomically(path("eleven"), "12345678901");
    QCOMPARE(category_of([&] { read_file(path("eleven"), 10); }), Category::kInput);
    QCOMPARE(read_file(path("eleven"), 11).size(), std::size_t{11});
}

void FilesTest::readsFilesThatDoNotKnowTheirSize() {
    QVERIFY(!read_file("/proc/self/status", 1 << 20).empty());
    QCOMPARE(category_of([&] { read_file("/proc/self/status", 10); }), Category::kInput);
}

void FilesTest::writesBytesForPeople() {
    QCOMPARE(human_bytes(0), std::string("0 bytes"));
    QCOMPARE(human_bytes(1023), std::string("1023 bytes"));
    QCOMPARE(human_bytes(64U << 20U), std::string("64 MiB"));
    QCOMPARE(human_bytes(1536), std::string("1.5 KiB"));
}

void FilesTest::base64RoundTripsEveryLengthAndByte() {
    QCOMPARE(base64_encode("Man"), std::string("TWFu"));
    QCOMPARE(base64_encode("Ma"), std::string("TWE="));
    QCOMPARE(base64_encode("M"), std::string("TQ=="));
    std::string bytes;
    for (int length = 0; length < 300; ++length) {
        const std::string text = base64_encode(bytes);
        QCOMPARE(QByteArray::fromStdString(text), QByteArray::fromStdString(bytes).toBase64());
        QCOMPARE(base64_decode(text), bytes);
        bytes.push_back(static_cast<char>(length * 37 + 11));
    }
}

void FilesTest::base64RefusesDamagedText_data() {
    QTest::addColumn<QByteArray>("text");
    QTest::newRow("length") << QByteArray("TWF");
    QTest::newRow("sign") << QByteArray("TW!u");
    QTest::newRow("line end") << QByteArray("TWFu\n");
    QTest::newRow("padding in the middle") << QByteArray("TQ==TWFu");
    QTest::newRow("too much padding") << QByteArray("T===");
    QTest::newRow("only padding") << QByteArray("====");
    QTest::newRow("bits that are not used") << QByteArray("TR==");
    QTest::newRow("bits that are not used, two bytes") << QByteArray("TWF=");
}

void FilesTest::base64RefusesDamagedText() {
    QFETCH(QByteArray, text);
    QCOMPARE(category_of([&] { base64_decode(text.toStdString()); }), Category::kInput);
}

void FilesTest::prefersTheModelNamedInTheEnvironment() {
    qputenv("LONGVIEW_MODEL", "/models/mine");
    QCOMPARE(default_model_folder().string(), std::string("/models/mine"));
    qunsetenv("LONGVIEW_MODEL");
    QCOMPARE(std::filesystem::weakly_canonical(default_model_folder()).string(),
             std::filesystem::weakly_canonical(LONGVIEW_DEMO_MODEL).string());
}

QTEST_GUILESS_MAIN(FilesTest)
#include "files_test.moc"

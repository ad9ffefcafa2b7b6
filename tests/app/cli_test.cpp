// longview-cli without an answer: usage, exit statuses, tokenize, inspect, and files that are not
// what they should be.
#include <QDir>
#include <QElapsedTimer>
#include <QFile>
#include <QJsonArray>
#include <QTemporaryDir>
#include <QTest>

#include "cli_runner.h"
#include "tests/llm/fake_checkpoint.h"

using longview::test::CliResult;
using longview::test::run_cli;

namespace {

const QStringList kCommands = {"ask", "chat", "tokenize", "inspect", "bench", "eval", "selftest"};

/// One line that begins with `error: ` and nothing else.
bool is_one_error_line(const QByteArray& err) {
    return err.startsWith("error: ") && err.endsWith('\n') && err.count('\n') == 1;
}

void write_file(const QString& path, const QByteArray& bytes) {
    QFile file(path);
    QVERIFY(file.open(QIODevice::WriteOnly));
    QCOMPARE(file.write(bytes), bytes.size());
}

/// A copy of the demo model without its evaluation, golden data and scripts.
void copy_model(const QString& folder) {
    const QDir source(LONGVIEW_DEMO_MODEL);
    for (const QString& name : source.entryList(QDir::Files)) {
        QVERIFY(QFile::copy(source.filePath(name), folder + "/" + name));
        QVERIFY(QFile::setPermissions(folder + "/" + name, QFile::ReadOwner | QFile::WriteOwner));
    }
}

}  // namespace

#define COMPARE_ERROR(result, expected_status, words)                      \
    do {                                                                   \
        const CliResult checked = (result);                                \
        QVERIFY2(is_one_error_line(checked.err), checked.err.constData()); \
        QVERIFY2(checked.err.contains(words), checked.err.constData());    \
        QCOMPARE(checked.status, expected_status);                         \
    } while (false)

class CliTest : public QObject {
    Q_OBJECT

  private slots:
    void explainsItselfAndEachCommand();
    void refusesWrongUsage_data();
    void refusesWrongUsage();
    void saysWhatIsWrongWithAFile_data();
    void saysWhatIsWrongWithAFile();
    void takesTheModelFromTheEnvironment();
    void tokenizesTextAndStandardInput();
    void neverMakesSpecialTokensOfText();
    void inspectsTheDemoModel();
    void inspectsAsJson();
    void inspectsAModelOfTheRealSize();
    void listsEveryProblemOfADamagedModel();
    void reportsAFullDisk();
};

void CliTest::explainsItselfAndEachCommand() {
    const CliResult help = run_cli({"--help"});
    QCOMPARE(help.status, 0);
    QCOMPARE(help.err, QByteArray());
    for (const QString& command : kCommands) {
        QVERIFY2(help.out.contains(command.toUtf8()), qPrintable(command));
        const CliResult one = run_cli({command, "--help"});
        QCOMPARE(one.status, 0);
        QVERIFY(one.out.contains("--help"));
        QCOMPARE(one.err, QByteArray());
    }
    const CliResult version = run_cli({"--version"});
    QCOMPARE(version.status, 0);
    QVERIFY(version.out.startsWith("longview-cli "));
}

void CliTest::refusesWrongUsage_data() {
    QTest::addColumn<QStringList>("arguments");
    QTest::addColumn<QByteArray>("words");
    const auto row = [](const char* name, const QStringList& arguments, const char* words) {
        QTest::newRow(name) << arguments << QByteArray(words);
    };
    row("nothing", {}, "command");
    row("unknown command", {"paint"}, "paint");
    row("unknown option", {"ask", "--colour", "x"}, "--colour");
    row("no question", {"ask"}, "QUESTION");
    row("empty question", {"ask", ""}, "empty");
    row("blank question", {"ask", " \n\t"}, "empty");
    row("blank standard input", {"ask", "-"}, "empty");
    row("two questions", {"ask", "a", "b"}, "b");
    row("device", {"ask", "--device", "tpu", "x"}, "--device");
    row("temperature below 0", {"ask", "--temperature", "-0.5", "x"}, "--temperature");
    row("temperature is no number", {"ask", "--temperature", "warm", "x"}, "--temperature");
    row("temperature NaN", {"ask", "--temperature", "nan", "x"}, "--temperature");
    row("temperature infinite", {"ask", "--temperature", "inf", "x"}, "--temperature");
    row("max tokens 0", {"ask", "--max-tokens", "0", "x"}, "--max-tokens");
    row("max tokens beyond int64", {"ask", "--max-tokens", "99999999999999999999", "x"},
        "--max-tokens");
    row("top-p", {"ask", "--top-p", "1.5", "x"}, "--top-p");
    row("min-p", {"ask", "--min-p", "-1", "x"}, "--min-p");
    row("top-k", {"ask", "--top-k", "-1", "x"}, "--top-k");
    row("seed below 0", {"ask", "--seed", "-1", "x"}, "--seed");
    row("threads", {"ask", "--threads", "-2", "x"}, "--threads");
    row("empty stop text", {"ask", "--stop", "", "x"}, "--stop");
    row("option without value", {"ask", "x", "--image"}, "--image");
    row("bench length 0", {"bench", "--lengths", "128,0"}, "--lengths");
    row("bench length is no number", {"bench", "--lengths", "128,many"}, "--lengths");
    row("bench decode", {"bench", "--decode", "0"}, "--decode");
    row("no folder", {"inspect"}, "DIR");
    row("no cases", {"eval"}, "CASES");
    row("negative count", {"eval", "--max", "-1", "x"}, "--max");
}

void CliTest::refusesWrongUsage() {
    QFETCH(QStringList, arguments);
    QFETCH(QByteArray, words);
    const CliResult result = run_cli(arguments);
    QCOMPARE(result.out, QByteArray());
    COMPARE_ERROR(result, 2, words);
}

void CliTest::saysWhatIsWrongWithAFile_data() {
    QTest::addColumn<QByteArray>("bytes");  // of the file FILE; null: there is none
    QTest::addColumn<QStringList>("arguments");
    QTest::addColumn<QByteArray>("words");
    const auto row = [](const char* name, const QByteArray& bytes, const QStringList& arguments,
                        const char* words) {
        QTest::newRow(name) << bytes << arguments << QByteArray(words);
    };
    const QByteArray none;
    row("no picture", none, {"ask", "--image", "FILE", "x"}, "FILE");
    row("picture is text", "hello, this is text", {"ask", "--image", "FILE", "x"}, "FILE");
    row("picture is empty", "", {"ask", "--image", "FILE", "x"}, "FILE");
    row("picture is a folder", none, {"ask", "--image", "/", "x"}, "/");
    row("no document", none, {"ask", "--doc", "FILE", "x"}, "FILE");
    row("document is empty", "", {"ask", "--doc", "FILE", "x"}, "empty");
    row("document is Latin-1", "caf\xE9", {"ask", "--doc", "FILE", "x"}, "offset 3");
    row("document is binary", QByteArray("a\0b", 3), {"ask", "--doc", "FILE", "x"}, "offset 1");
    row("document is PDF", "%PDF-1.4", {"ask", "--doc", "FILE", "x"}, "PDF");
    row("document is a device", none, {"ask", "--doc", "/dev/zero", "x"}, "/dev/zero");
    row("no model", none, {"ask", "--model", "FILE", "x"}, "FILE");
    row("model is a file", "text", {"ask", "--model", "FILE", "x"}, "FILE");
    row("no model to tokenize", none, {"tokenize", "--model", "FILE", "x"}, "FILE");
    row("no model to inspect", none, {"inspect", "FILE"}, "FILE");
    row("no cases", none, {"eval", "FILE"}, "FILE");
    row("cases are no JSON", "[{", {"eval", "FILE"}, "JSON");
    row("cases are no list", "{}", {"eval", "FILE"}, "list");
    row("no golden data", none, {"selftest", "--golden", "FILE"}, "FILE");
}

void CliTest::saysWhatIsWrongWithAFile() {
    QFETCH(QByteArray, bytes);
    QFETCH(QStringList, arguments);
    QFETCH(QByteArray, words);
    const QTemporaryDir folder;
    const QString file = folder.filePath("FILE");
    if (!bytes.isNull()) write_file(file, bytes);
    arguments.replaceInStrings(QRegularExpression("^FILE$"), file);
    const CliResult result = run_cli(arguments);
    QCOMPARE(result.out, QByteArray());
    COMPARE_ERROR(result, 1, words);
}

void CliTest::takesTheModelFromTheEnvironment() {
    QProcessEnvironment environment = QProcessEnvironment::systemEnvironment();
    environment.insert("KEEP_LONGVIEW_MODEL", "1");
    environment.insert("LONGVIEW_MODEL", "/no/such/model");
    COMPARE_ERROR(run_cli({"tokenize", "x"}, {}, environment), 1, "/no/such/model");
    const CliResult named =
        run_cli({"tokenize", "--model", LONGVIEW_DEMO_MODEL, "x"}, {}, environment);
    QCOMPARE(named.status, 0);
}

void CliTest::tokenizesTextAndStandardInput() {
    // The golden prompt begins: <beginning_of_sentence>user name=user\n.
    QFile golden(LONGVIEW_TEST_DATA "/golden/02_square/golden.json");
    QVERIFY(golden.open(QIODevice::ReadOnly));
    const QJsonArray ids =
        QJsonDocument::fromJson(golden.readAll()).object()["input_ids"].toArray();
    const CliResult json = run_cli({"tokenize", "--json", "user name=user\n"});
    QCOMPARE(json.status, 0);
    QCOMPARE(json.err, QByteArray());
    const QJsonArray got = json.json()["ids"].toArray();
    QVERIFY(!got.isEmpty());
    for (int i = 0; i < got.size(); ++i) QCOMPARE(got[i].toInt(), ids[i + 1].toInt());
    QCOMPARE(json.json()["tokens"].toInt(), got.size());
    QCOMPARE(json.json()["pieces"].toArray().size(), got.size());

    const CliResult piped = run_cli({"tokenize", "-", "--json"}, "user name=user\n");
    QCOMPARE(piped.out, json.out);
    const CliResult table = run_cli({"tokenize", "user name=user\n"});
    QCOMPARE(table.out.count('\n'), got.size());
    QVERIFY(table.out.contains(QByteArray::number(got[0].toInt())));
    QCOMPARE(run_cli({"tokenize", ""}).out, QByteArray());
}

void CliTest::neverMakesSpecialTokensOfText() {
    const QJsonObject tokens = run_cli({"tokenize", "--json", "<image><end_of_sentence>"}).json();
    QVERIFY(tokens["tokens"].toInt() > 2);
    for (const QJsonValue& piece : tokens["pieces"].toArray()) {
        QVERIFY(piece.toString() != "<image>");
        QVERIFY(piece.toString() != "<end_of_sentence>");
    }
}

void CliTest::inspectsTheDemoModel() {
    const CliResult result = run_cli({"inspect", LONGVIEW_DEMO_MODEL});
    QCOMPARE(result.status, 0);
    QCOMPARE(result.err, QByteArray());
    QVERIFY(result.out.contains("8: 6 lightning attention, 2 softmax attention"));
    QVERIFY(result.out.contains("245 tensors, 3 files"));
    QVERIFY(result.out.contains("BF16"));
    QVERIFY(result.out.contains("problems     none"));
}

void CliTest::inspectsAsJson() {
    const CliResult result = run_cli({"inspect", LONGVIEW_DEMO_MODEL, "--json"});
    QCOMPARE(result.status, 0);
    const QJsonObject object = result.json();
    const QJsonObject config = object["config"].toObject();
    QCOMPARE(config["layers"].toInt(), 8);
    QCOMPARE(config["lightning_layers"].toInt(), 6);
    QCOMPARE(config["softmax_layers"].toInt(), 2);
    QCOMPARE(config["experts"].toInt(), 4);
    QCOMPARE(object["shards"].toInt(), 3);
    QCOMPARE(object["tensors"].toInt(), 245);
    QCOMPARE(object["bytes"].toInteger(), qint64{32943104});
    QCOMPARE(object["parameters"].toInteger(), qint64{32943104} / 2);
    QVERIFY(object["problems"].toArray().isEmpty());
    for (const char* list : {"parts", "dtypes"}) {
        qint64 bytes = 0;
        qint64 parameters = 0;
        for (const QJsonValue& part : object[list].toArray()) {
            bytes += part["bytes"].toInteger();
            parameters += part["parameters"].toInteger();
        }
        QCOMPARE(bytes, object["bytes"].toInteger());
        QCOMPARE(parameters, object["parameters"].toInteger());
    }
}

void CliTest::inspectsAModelOfTheRealSize() {
    const QTemporaryDir folder;
    longview::test::write_sparse_checkpoint(folder.path().toStdString(),
                                            longview::test::published_config(), 413);
    QElapsedTimer timer;
    timer.start();
    const CliResult result = run_cli({"inspect", folder.path()});
    qInfo("inspected 413 shards in %lld ms", static_cast<long long>(timer.elapsed()));
    QVERIFY2(result.out.contains("80: 70 lightning attention, 10 softmax attention"),
             result.out.constData());
    QVERIFY(result.out.contains("456,437,219,328, of which 45,944,920,064 work on a token"));
    QVERIFY(result.out.contains("850.2 GiB (912,874,438,656 bytes) in 8,637 tensors, 413 files"));
    // The sparse folder has weights but no tokenizer.
    QVERIFY2(is_one_error_line(result.err), result.err.constData());
    QVERIFY2(result.err.contains("tokenizer"), result.err.constData());
    QCOMPARE(result.out.count("\nproblem "), 1);
    QCOMPARE(result.status, 1);
}

void CliTest::listsEveryProblemOfADamagedModel() {
    const QTemporaryDir folder;
    copy_model(folder.path());
    QVERIFY(QFile::resize(folder.filePath("model-00002-of-00003.safetensors"), 1'000'000));
    QVERIFY(QFile::remove(folder.filePath("tokenizer.json")));
    const CliResult result = run_cli({"inspect", folder.path(), "--json"});
    QCOMPARE(result.status, 1);
    QVERIFY2(is_one_error_line(result.err), result.err.constData());
    const QJsonObject object = result.json();
    QCOMPARE(object["config"].toObject()["layers"].toInt(), 8);
    const QJsonArray problems = object["problems"].toArray();
    QCOMPARE(problems.size(), 2);
    QVERIFY2(problems[0].toString().contains("model-00002-of-00003.safetensors"),
             qPrintable(problems[0].toString()));
    QVERIFY2(problems[1].toString().contains("tokenizer"), qPrintable(problems[1].toString()));
}

void CliTest::reportsAFullDisk() {
    if (!QFile::exists("/dev/full")) QSKIP("this system has no /dev/full");
    QProcess process;
    process.setStandardOutputFile("/dev/full");
    process.start(LONGVIEW_CLI, {"inspect", LONGVIEW_DEMO_MODEL});
    QVERIFY(process.waitForFinished(60'000));
    QCOMPARE(process.exitStatus(), QProcess::NormalExit);
    QCOMPARE(process.exitCode(), 1);
    const QByteArray err = process.readAllStandardError();
    QVERIFY2(is_one_error_line(err), err.constData());
    QVERIFY(err.contains("No space left"));
}

QTEST_GUILESS_MAIN(CliTest)
#include "cli_test.moc"

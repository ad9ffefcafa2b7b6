// longview-cli with the demo model: it answers as the reference implementation did, reuses what it
// read, saves, stops and counts.
#include <signal.h>

#include <QFile>
#include <QJsonArray>
#include <QTemporaryDir>
#include <QTest>

#include "cli_runner.h"

using longview::test::CliResult;
using longview::test::run_cli;

namespace {

const QString kSquare = LONGVIEW_TEST_DATA "/golden/02_square/image_0.png";
const QString kShapes = LONGVIEW_SAMPLES "/shapes.png";
const QString kReport = LONGVIEW_SAMPLES "/report.txt";
const QByteArray kShapesAnswer =
    "From left to right the image shows a blue cross, a red square and an orange hexagon.\n";

QJsonObject golden(const char* name) {
    QFile file(QString(LONGVIEW_TEST_DATA "/golden/%1/golden.json").arg(name));
    if (!file.open(QIODevice::ReadOnly)) return {};
    return QJsonDocument::fromJson(file.readAll()).object();
}

/// The number in front of ` WORDS` in the output of /stats.
int number_before(const QByteArray& text, const char* words) {
    const auto end = text.indexOf(words);
    if (end < 0) return -1;
    const auto begin = text.lastIndexOf(' ', end - 1) + 1;
    return text.mid(begin, end - begin).replace(",", "").trimmed().toInt();
}

}  // namespace

class CliAnswersTest : public QObject {
    Q_OBJECT

  private slots:
    void answersAboutAPictureLikeTheReference();
    void answersAboutTheSamples();
    void readsTheQuestionFromStandardInput();
    void writesTheAnswerAndItsCountsAsJson();
    void stopsAtTheLimitAndAtStopTexts();
    void repeatsAVariedAnswerWithItsSeed();
    void evaluatesCases();
    void evaluationListsDifferences();
    void passesItsSelftestAndFailsWithOtherLogits();
    void measuresSpeed();
    void rereadsOnlyWhatIsNewInAChat();
    void chatTakesBackTheLastQuestion();
    void chatGoesOnAfterWrongLines();
    void savedChatsGoOnWithoutReadingAgain();
    void chatReadsAgainWhenTheStateIsDamaged();
    void interruptedAskKeepsWhatWasAnswered();
    void stopsWhenNobodyReadsTheAnswer();
};

void CliAnswersTest::answersAboutAPictureLikeTheReference() {
    const QJsonObject expected = golden("02_square");
    const CliResult result =
        run_cli({"ask", "--image", kSquare, "List the shapes from left to right."});
    QCOMPARE(result.status, 0);
    QCOMPARE(result.err, QByteArray());  // no notes where there is no terminal
    QCOMPARE(QString(result.out), expected["greedy_text"].toString() + "\n");
}

void CliAnswersTest::answersAboutTheSamples() {
    QCOMPARE(run_cli({"ask", "--image", kShapes, "What shapes do you see?"}).out, kShapesAnswer);
    QCOMPARE(run_cli({"ask", "--doc", kReport, "What is the total budget?"}).out,
             QByteArray("The total budget is 76,000 euros (page 1).\n"));
    QCOMPARE(run_cli({"ask", "--doc", kReport, "Where was the steady anchor workshop held?"}).out,
             QByteArray("The steady anchor workshop was held in Woodcliff (page 3).\n"));
}

void CliAnswersTest::readsTheQuestionFromStandardInput() {
    const CliResult result = run_cli({"ask", "--image", kShapes, "-"}, "What shapes do you see?\n");
    QCOMPARE(result.out, kShapesAnswer);
    const CliResult wrong = run_cli({"ask", "-"}, "caf\xE9\n");
    QCOMPARE(wrong.status, 1);
    QVERIFY(wrong.err.contains("offset 3"));
}

void CliAnswersTest::writesTheAnswerAndItsCountsAsJson() {
    const QJsonObject expected = golden("02_square");
    const CliResult result =
        run_cli({"ask", "--json", "--image", kSquare, "List the shapes from left to right."});
    QCOMPARE(result.status, 0);
    QJsonObject object = result.json();
    QCOMPARE(object.keys(), QStringList({"answer", "completion_tokens", "decode_seconds", "device",
                                         "finish_reason", "image_tokens", "model",
                                         "prefill_seconds", "prompt_tokens", "reused_tokens"}));
    QCOMPARE(object["answer"], expected["greedy_text"]);
    QCOMPARE(object["finish_reason"].toString(), QString("stop"));
    QCOMPARE(object["prompt_tokens"].toInt(), expected["input_ids"].toArray().size());
    QCOMPARE(object["image_tokens"].toInt(), expected["images"][0]["tokens"].toInt());
    QCOMPARE(object["reused_tokens"].toInt(), 0);
    QVERIFY(object["completion_tokens"].toInt() > 0);
    QVERIFY(object["prefill_seconds"].toDouble() > 0.0);
    QVERIFY(object["decode_seconds"].toDouble() > 0.0);
    QCOMPARE(object["model"].toString(), QString("demo-model"));
    QCOMPARE(object["device"].toString(), QString("cpu"));
}

void CliAnswersTest::stopsAtTheLimitAndAtStopTexts() {
    const QStringList ask = {"ask", "--json", "--image", kShapes, "What shapes do you see?"};
    const QJsonObject limited = run_cli(ask + QStringList{"--max-tokens", "3"}).json();
    QCOMPARE(limited["finish_reason"].toString(), QString("length"));
    QCOMPARE(limited["completion_tokens"].toInt(), 3);
    const QJsonObject stopped = run_cli(ask + QStringList{"--stop", " the image"}).json();
    QCOMPARE(stopped["finish_reason"].toString(), QString("stop"));
    QCOMPARE(stopped["answer"].toString(), QString("From left to right"));
}

void CliAnswersTest::repeatsAVariedAnswerWithItsSeed() {
    const auto answer = [](const char* seed) {
        return run_cli({"ask", "--temperature", "2", "--max-tokens", "30", "--seed", seed,
                        "Tell me a joke."})
            .out;
    };
    const QByteArray first = answer("7");
    QVERIFY(!first.isEmpty());
    QCOMPARE(answer("7"), first);
    QVERIFY(answer("8") != first);
}

void CliAnswersTest::evaluatesCases() {
    const CliResult result =
        run_cli({"eval", "--json", "--max", "5", LONGVIEW_DEMO_MODEL "/eval/cases.json"});
    QCOMPARE(result.status, 0);
    const QJsonObject object = result.json();
    QCOMPARE(object["cases"].toInt(), 5);
    QCOMPARE(object["agree"].toInt(), 5);
    int cases = 0;
    int exact = 0;
    for (const QJsonValue& task : object["tasks"].toObject()) {
        cases += task["cases"].toInt();
        exact += task["exact"].toInt();
    }
    QCOMPARE(cases, 5);
    QCOMPARE(exact, object["exact"].toInt());
    QCOMPARE(object["differences"].toArray().size(), 5 - object["exact"].toInt());
}

void CliAnswersTest::evaluationListsDifferences() {
    const QTemporaryDir folder;
    QFile file(folder.filePath("cases.json"));
    QVERIFY(file.open(QIODevice::WriteOnly));
    file.write(R"([{"id": 1, "task": "talk", "expected": "Nothing.", "model_answer": "Something.",
                    "messages": [{"role": "user", "content": "Thank you!"}]}])");
    file.close();
    const CliResult text = run_cli({"eval", file.fileName()});
    QCOMPARE(text.status, 0);
    for (const char* line : {"case 1 (talk)", "expected   Nothing.", "reference  Something.",
                             "answer     You are welcome."}) {
        QVERIFY2(text.out.contains(line), text.out.constData());
    }
    const QJsonObject object = run_cli({"eval", "--json", file.fileName()}).json();
    QCOMPARE(object["agree"].toInt(), 0);
    QCOMPARE(object["differences"][0]["answer"].toString(), QString("You are welcome."));
}

void CliAnswersTest::passesItsSelftestAndFailsWithOtherLogits() {
    const CliResult result = run_cli({"selftest"});
    QVERIFY2(result.out.contains("2 of 2 passed"), result.out.constData());
    QCOMPARE(result.status, 0);

    const QTemporaryDir folder;
    QVERIFY(QDir(folder.path()).mkdir("text"));
    const QString source = LONGVIEW_TEST_DATA "/golden/01_text/";
    for (const char* name : {"golden.json", "messages.json", "logits.f32"}) {
        QVERIFY(QFile::copy(source + name, folder.filePath("text/") + name));
    }
    QFile logits(folder.filePath("text/logits.f32"));
    QVERIFY(logits.setPermissions(QFile::ReadOwner | QFile::WriteOwner));
    QVERIFY(logits.open(QIODevice::ReadWrite));
    const float nan = std::numeric_limits<float>::quiet_NaN();
    logits.seek(400);
    logits.write(reinterpret_cast<const char*>(&nan), sizeof nan);
    logits.close();
    const CliResult failed = run_cli({"selftest", "--golden", folder.path()});
    QCOMPARE(failed.status, 1);
    QVERIFY(failed.out.contains("FAILED"));
    QVERIFY(failed.err.startsWith("error: "));
}

void CliAnswersTest::measuresSpeed() {
    const CliResult json = run_cli({"bench", "--json", "--lengths", "16,40", "--decode", "3"});
    QCOMPARE(json.status, 0);
    const QJsonArray rows = json.json()["lengths"].toArray();
    QCOMPARE(rows.size(), 2);
    QCOMPARE(rows[0]["prompt_tokens"].toInt(), 16);
    QCOMPARE(rows[1]["prompt_tokens"].toInt(), 40);
    QCOMPARE(rows[1]["decode_tokens"].toInt(), 3);
    QVERIFY(rows[1]["prefill_tokens_per_second"].toDouble() > 0.0);
    QVERIFY(rows[1]["decode_tokens_per_second"].toDouble() > 0.0);
    const CliResult table = run_cli({"bench", "--lengths", "16", "--decode", "1"});
    QVERIFY(table.out.contains("tokens/s"));
}

void CliAnswersTest::rereadsOnlyWhatIsNewInAChat() {
    const CliResult result = run_cli({"chat"}, "/doc " + kReport.toUtf8() +
                                                   "\n"
                                                   "Who is the author?\n"
                                                   "/stats\n"
                                                   "What is the total budget?\n"
                                                   "/stats\n");
    QCOMPARE(result.err, QByteArray());
    QCOMPARE(result.status, 0);
    const QList<QByteArray> lines = result.out.split('\n');
    QCOMPARE(lines.size(), 7);  // two answers, twice two lines of statistics, the end
    QCOMPARE(lines[0], QByteArray("It was prepared by Zoe Steinberg."));
    QCOMPARE(number_before(lines[1], " of them reused"), 0);
    const int read = number_before(lines[1], " tokens,");
    QVERIFY(read > 500);
    // All but the last words of the second prompt were known.
    QVERIFY(number_before(lines[4], " of them reused") >= read);
    QVERIFY(number_before(lines[4], " tokens,") - number_before(lines[4], " of them reused") < 60);
}

void CliAnswersTest::chatTakesBackTheLastQuestion() {
    const CliResult result = run_cli({"chat", "--image", kShapes},
                                     "What shapes do you see?\n"
                                     "/undo\n"
                                     "What shapes do you see?\n"
                                     "/new\n"
                                     "/undo\n");
    // The picture went with the question that was taken back.
    const QList<QByteArray> lines = result.out.split('\n');
    QCOMPARE(lines[0] + "\n", kShapesAnswer);
    QVERIFY(lines[1] + "\n" != kShapesAnswer);
    QVERIFY(result.err.contains("there is no question to take back"));
    QCOMPARE(result.status, 1);
}

void CliAnswersTest::chatGoesOnAfterWrongLines() {
    const CliResult result = run_cli({"chat"},
                                     "/paint\n/image\n/image /no/such.png\n/help now\n"
                                     "caf\xE9\n\n  \n/stats\n/save x\n"
                                     "Thank \\\nyou!\n/quit\nHello\n");
    QCOMPARE(result.err.count("error: "), 7);
    QCOMPARE(result.err.count('\n'), 7);
    QVERIFY(result.err.contains("/paint"));
    QVERIFY(result.err.contains("/image FILE"));
    QVERIFY(result.err.contains("/no/such.png"));
    QVERIFY(result.err.contains("offset 3"));
    QCOMPARE(result.out.count('\n'), 1);  // one answer, nothing after /quit
    QCOMPARE(result.status, 1);
}

void CliAnswersTest::savedChatsGoOnWithoutReadingAgain() {
    const QTemporaryDir folder;
    const QByteArray file = folder.filePath("my talk.json").toUtf8();
    const CliResult first = run_cli({"chat", "--image", kShapes},
                                    "What shapes do you see?\n/save " + file + "\n/stats\n");
    QCOMPARE(first.err, QByteArray());
    QVERIFY(QFile::exists(file));
    QVERIFY(QFile::exists(file + ".state"));
    const CliResult second =
        run_cli({"chat"}, "/load \"" + file + "\"\nHow many shapes are there?\n/stats\n");
    QCOMPARE(second.err, QByteArray());
    QVERIFY(second.out.startsWith("There are 3 shapes.\n"));
    QVERIFY(number_before(second.out, " of them reused") >= number_before(first.out, " tokens,"));
    // Undone words must not stay behind in a state file.
    const CliResult third =
        run_cli({"chat"}, "/load " + file + "\nThanks\n/undo\n/save " + file + "\n");
    QCOMPARE(third.status, 0);
    QVERIFY(!QFile::exists(file + ".state"));
}

void CliAnswersTest::chatReadsAgainWhenTheStateIsDamaged() {
    const QTemporaryDir folder;
    const QByteArray file = folder.filePath("talk.json").toUtf8();
    run_cli({"chat", "--image", kShapes}, "What shapes do you see?\n/save " + file + "\n");
    QVERIFY(QFile::resize(file + ".state", 1000));
    const CliResult result =
        run_cli({"chat"}, "/load " + file + "\nHow many shapes are there?\n/stats\n");
    QCOMPARE(result.status, 0);
    QVERIFY(result.out.startsWith("There are 3 shapes.\n"));
    QCOMPARE(number_before(result.out, " of them reused"), 0);
}

void CliAnswersTest::interruptedAskKeepsWhatWasAnswered() {
    // Penalties and a high temperature keep the demo model talking until the interrupt comes.
    QProcess process;
    process.start(LONGVIEW_CLI, {"ask", "--temperature", "10", "--max-tokens", "1000000", "--seed",
                                 "1", "Tell me a joke."});
    QVERIFY(process.waitForReadyRead(60'000));
    QCOMPARE(::kill(static_cast<pid_t>(process.processId()), SIGINT), 0);
    QVERIFY(process.waitForFinished(60'000));
    QCOMPARE(process.exitStatus(), QProcess::NormalExit);
    QCOMPARE(process.exitCode(), 130);
    const QByteArray out = process.readAllStandardOutput();
    QVERIFY(out.size() > 1);
    QVERIFY(out.endsWith('\n'));
    QCOMPARE(process.readAllStandardError(), QByteArray());
}

void CliAnswersTest::stopsWhenNobodyReadsTheAnswer() {
    QProcess process;
    process.start("/bin/sh", {"-c",
                              "\"$0\" ask --temperature 10 --max-tokens 1000000 --seed 1 "
                              "'Tell me a joke.' | head -c 5",
                              LONGVIEW_CLI});
    QVERIFY(process.waitForFinished(120'000));
    QVERIFY(process.readAllStandardError().contains("error: cannot write to standard output"));
}

QTEST_GUILESS_MAIN(CliAnswersTest)
#include "cli_answers_test.moc"

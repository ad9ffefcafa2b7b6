#include "llm/engine/stop_text.h"

#include <QtTest>
#include <string>

using longview::llm::StopText;

class StopTextTest : public QObject {
    Q_OBJECT

  private slots:
    void endsAtTheFirstStopText() {
        StopText stop({"END", "\n\n"});
        QCOMPARE(stop.push("one two"), std::string("one two"));
        QCOMPARE(stop.push(" three\n\nfour END"), std::string(" three"));
        QVERIFY(stop.stopped());
        QCOMPARE(stop.push("more"), std::string());
        QCOMPARE(stop.finish(), std::string());
    }
    void recognisesAStopTextInPieces() {
        StopText stop({"</answer>"});
        std::string out;
        for (const char c : std::string("yes</ans</answer>no")) out += stop.push({&c, 1});
        QCOMPARE(out + stop.finish(), std::string("yes</ans"));
        QVERIFY(stop.stopped());
    }
    void givesBackWhatWasHeldWhenTheAnswerEnds() {
        StopText stop({"abcd"});
        QCOMPARE(stop.push("xabc"), std::string("x"));
        QVERIFY(!stop.stopped());
        QCOMPARE(stop.finish(), std::string("abc"));
    }
    void ignoresEmptyStopTexts() {
        StopText stop({""});
        QCOMPARE(stop.push("text"), std::string("text"));
        QVERIFY(!stop.stopped());
    }
};

QTEST_GUILESS_MAIN(StopTextTest)
#include "stop_text_test.moc"

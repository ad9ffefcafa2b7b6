#include "llm/checkpoint/strict_json.h"

#include <QTest>
#include <nlohmann/json.hpp>

#include "tests/llm/errors.h"

using longview::llm::JsonLimits;
using longview::llm::parse_strict_json;
using longview::llm::quote_for_message;
using nlohmann::json;

class StrictJsonTest : public QObject {
    Q_OBJECT

  private slots:
    void buildsTheSameDocumentAsTheLibrary();
    void refusesWhatTheLibraryWouldLetPass_data();
    void refusesWhatTheLibraryWouldLetPass();
    void stopsAtTheLimits();
    void deepNestingCostsNeitherStackNorMemory();
    void integersBeyond64BitsAreNotIntegers();
    void foreignTextIsMadePrintable();
};

void StrictJsonTest::buildsTheSameDocumentAsTheLibrary() {
    const std::string text =
        R"({"a": [1, -2, 3.5, [], {}, [[{"b": null}], true]], "c": {"d": "\u00e9\ud83d\ude00", "e": false}, "": 18446744073709551615})";
    QVERIFY(parse_strict_json(text, {}, "x.json") == json::parse(text));
    for (const char* scalar : {"1", "null", "\"a\"", " [ ] ", "-0.0"}) {
        QVERIFY(parse_strict_json(scalar, {}, "x.json") == json::parse(scalar));
    }
}

void StrictJsonTest::refusesWhatTheLibraryWouldLetPass_data() {
    QTest::addColumn<QByteArray>("text");
    QTest::addColumn<QString>("cause");
    QTest::newRow("repeated key") << QByteArray(R"({"a": 1, "b": {}, "a": 2})")
                                  << "the key \"a\" appears twice in one object";
    QTest::newRow("repeated key, deep")
        << QByteArray(R"([{"x": {"a": 1, "\u0061": 2}}])") << "the key \"a\" appears twice";
    QTest::newRow("text after NUL")
        << QByteArray("{}\0{\"a\": 1}", 11) << "NUL byte at line 1, column 3";
    QTest::newRow("overflow") << QByteArray("[1e400]") << "number overflow";
    QTest::newRow("trailing text") << QByteArray("{}\n{}") << "not valid JSON at line 2, column 1";
    QTest::newRow("truncated") << QByteArray("{\"a\": [1,") << "not valid JSON at line 1";
    QTest::newRow("invalid UTF-8")
        << QByteArray("[\"\xff\"]") << "invalid string: ill-formed UTF-8";
    QTest::newRow("lone surrogate") << QByteArray(R"(["\ud800"])") << "surrogate";
    QTest::newRow("NaN") << QByteArray("[NaN]") << "not valid JSON";
    QTest::newRow("empty") << QByteArray("") << "x.json is empty";
    QTest::newRow("web page") << QByteArray("\n<!DOCTYPE html><html>") << "x.json is a web page";
    QTest::newRow("LFS pointer") << QByteArray("version https://git-lfs.github.com/spec/v1\noid")
                                 << "x.json is a Git LFS pointer";
}

void StrictJsonTest::refusesWhatTheLibraryWouldLetPass() {
    QFETCH(QByteArray, text);
    QFETCH(QString, cause);
    LONGVIEW_VERIFY_ERROR(parse_strict_json(text.toStdString(), {}, "x.json"),
                          ({"input: x.json", cause}));
}

void StrictJsonTest::stopsAtTheLimits() {
    const JsonLimits limits{.max_bytes = 40, .max_depth = 3, .max_items = 5};
    QVERIFY(parse_strict_json("[[[1, 2]]]", limits, "x").is_array());
    LONGVIEW_VERIFY_ERROR(parse_strict_json("[[[[]]]]", limits, "x"), ({"deeper than 3 levels"}));
    LONGVIEW_VERIFY_ERROR(parse_strict_json("[1,2,3,4,5]", limits, "x"),
                          ({"more than 5 keys and values"}));
    LONGVIEW_VERIFY_ERROR(parse_strict_json(std::string(41, ' '), limits, "x"),
                          ({"has 41 bytes; the limit is 40"}));
}

void StrictJsonTest::deepNestingCostsNeitherStackNorMemory() {
    LONGVIEW_VERIFY_ERROR(parse_strict_json(std::string(10'000'000, '['), {}, "x"),
                          ({"deeper than 64 levels"}));
}

void StrictJsonTest::integersBeyond64BitsAreNotIntegers() {
    const json parsed = parse_strict_json("[18446744073709551616, 1]", {}, "x");
    QVERIFY(!parsed[0].is_number_integer());
    QVERIFY(parsed[1].is_number_unsigned());
}

void StrictJsonTest::foreignTextIsMadePrintable() {
    QCOMPARE(quote_for_message("a\n\x7f\xff\xc3\xa9\xed\xa0\x80\xc3"), "\"a???\xc3\xa9????\"");
    QCOMPARE(quote_for_message("abcdef", 3), "\"abc...\"");
    QCOMPARE(quote_for_message("ab\xc3\xa9", 3), "\"ab...\"");
    QCOMPARE(quote_for_message("\xf4\x8f\xbf\xbf\xf4\x90\x80\x80"), "\"\xf4\x8f\xbf\xbf????\"");
}

QTEST_GUILESS_MAIN(StrictJsonTest)
#include "strict_json_test.moc"

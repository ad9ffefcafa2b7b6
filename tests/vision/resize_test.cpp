// The bicubic resize against Pillow's own results.
#include "tests/vision/picture_helpers.h"

using namespace longview;
using namespace longview::test;
using vision::Image;

class ResizeTest : public QObject {
    Q_OBJECT

  private slots:
    void equalsPillowBitForBit_data() {
        QTest::addColumn<QJsonObject>("golden");
        const QJsonArray cases = read_json(data_path("resize_golden.json"))["cases"].toArray();
        QVERIFY(cases.size() >= 40);
        for (const QJsonValue& value : cases) {
            const QJsonObject c = value.toObject();
            QTest::addRow("%dx%d to %dx%d", c["from"][0].toInt(), c["from"][1].toInt(),
                          c["to"][0].toInt(), c["to"][1].toInt())
                << c;
        }
    }

    void equalsPillowBitForBit() {
        QFETCH(QJsonObject, golden);
        const Image image = made_up_picture(golden["from"][0].toInt(), golden["from"][1].toInt(),
                                            static_cast<std::uint32_t>(golden["seed"].toInt()));
        QCOMPARE(sha256(image.rgb), golden["source_sha256"].toString());
        const Image resized =
            vision::resize_bicubic(image, {golden["to"][0].toInt(), golden["to"][1].toInt()});
        QCOMPARE(resized.width, golden["to"][0].toInt());
        QCOMPARE(resized.height, golden["to"][1].toInt());
        QCOMPARE(sha256(resized.rgb), golden["sha256"].toString());
    }

    void keepsOneColourAtEverySize() {
        Image image{97, 61, {}};
        for (int i = 0; i < 97 * 61; ++i) image.rgb.insert(image.rgb.end(), {255, 0, 131});
        for (const vision::Size size : {vision::Size{1, 1}, {300, 2}, {96, 200}, {97, 60}}) {
            const Image out = vision::resize_bicubic(image, size);
            for (std::size_t i = 0; i < out.rgb.size(); i += 3) {
                QCOMPARE(out.rgb[i], 255);
                QCOMPARE(out.rgb[i + 1], 0);
                QCOMPARE(out.rgb[i + 2], 131);
            }
        }
    }

    void refusesAPictureWithoutItsPixels() {
        const auto error = error_of([] { vision::resize_bicubic({4, 4, {1, 2, 3}}, {2, 2}); });
        QVERIFY(error && error->category() == Category::kBug);
    }
};

QTEST_GUILESS_MAIN(ResizeTest)
#include "resize_test.moc"

// Grids, token counts, tiles and feature order against the reference and the published rules.
#include <algorithm>
#include <random>

#include "tests/vision/picture_helpers.h"
#include "vision/image/image.h"

using namespace longview;
using namespace longview::test;
using vision::PreprocessConfig;
using vision::Size;
using vision::TilePlan;

namespace {

constexpr std::int64_t kMostTokens = 11088;  // model-spec 7.6, 1008 x 2016

/// What must hold for any size; returns what does not.
QString broken_rule(const TilePlan& plan, const PreprocessConfig& config) {
    if (plan.feature_columns < 1 || plan.feature_rows < 1) return "no features";
    if (plan.feature_columns + 2 * plan.crop_x != plan.columns * config.patches_per_side())
        return "columns do not add up";
    if (plan.feature_rows + 2 * plan.crop_y != plan.rows * config.patches_per_side())
        return "rows do not add up";
    if (plan.resized.width < 1 || plan.resized.height < 1 ||
        plan.offset_x + plan.resized.width > plan.canvas.width ||
        plan.offset_y + plan.resized.height > plan.canvas.height)
        return "the picture leaves its canvas";
    if (plan.tokens > kMostTokens) return "too many tokens";
    return {};
}

QString broken_index(const TilePlan& plan, const PreprocessConfig& config) {
    const std::vector<std::int32_t> index = vision::feature_index(plan, config);
    if (static_cast<std::int64_t>(index.size()) != plan.tokens) return "length differs from tokens";
    std::vector<char> seen(static_cast<std::size_t>(plan.views() * config.patches_per_tile()), 0);
    std::int64_t newlines = 0;
    for (const std::int32_t i : index) {
        if (i == -1) {
            ++newlines;
        } else if (i < 0 || static_cast<std::size_t>(i) >= seen.size()) {
            return "index out of range";
        } else if (seen[static_cast<std::size_t>(i)]++ != 0) {
            return "a patch twice";
        }
    }
    return newlines == plan.feature_rows ? QString() : "not one newline a row";
}

}  // namespace

class TilingTest : public QObject {
    Q_OBJECT

  private slots:
    void countsTokensAsPublished_data() {
        QTest::addColumn<Size>("image");
        QTest::addColumn<Size>("grid");
        QTest::addColumn<int>("views");
        QTest::addColumn<Size>("features");
        QTest::addColumn<int>("tokens");
        const auto row = [](Size image, Size grid, int views, Size features, int tokens) {
            QTest::addRow("%dx%d", image.width, image.height)
                << image << grid << views << features << tokens;
        };
        row({336, 336}, {336, 336}, 2, {24, 24}, 1176);
        row({100, 100}, {336, 336}, 2, {24, 24}, 1176);
        row({300, 200}, {336, 336}, 2, {24, 16}, 976);
        row({640, 480}, {672, 672}, 5, {48, 36}, 2340);
        row({1024, 768}, {1344, 1008}, 13, {96, 72}, 7560);
        row({1280, 720}, {1344, 1008}, 13, {96, 54}, 5814);
        row({1920, 1080}, {2016, 1008}, 19, {128, 72}, 9864);
        row({2560, 1440}, {2016, 1008}, 19, {128, 72}, 9864);
        row({3840, 2160}, {2016, 1008}, 19, {128, 72}, 9864);
        row({1240, 1754}, {1008, 1680}, 16, {72, 102}, 8022);
        row({1344, 1344}, {1344, 1344}, 17, {96, 96}, 9888);
        row({2016, 1008}, {2016, 1008}, 19, {144, 72}, 11016);
        row({1008, 2016}, {1008, 2016}, 19, {72, 144}, 11088);
    }

    void countsTokensAsPublished() {
        QFETCH(Size, image);
        QFETCH(Size, grid);
        QFETCH(int, views);
        QFETCH(Size, features);
        QFETCH(int, tokens);
        const TilePlan plan = vision::plan_tiles(image, preprocess_config(336));
        QVERIFY(plan.canvas == grid);
        QCOMPARE(plan.views(), views);
        QVERIFY((Size{plan.feature_columns, plan.feature_rows} == features));
        QCOMPARE(plan.tokens, std::int64_t{tokens});
        QCOMPARE(broken_index(plan, preprocess_config(336)), QString());
    }

    void holdsItsRulesAtEverySize() {
        const PreprocessConfig config = preprocess_config(336);
        std::int64_t most = 0;
        const auto check = [&](int width, int height) {
            if (std::max(width, height) > 200 * std::min(width, height)) return;
            const TilePlan plan = vision::plan_tiles({width, height}, config);
            const TilePlan turned = vision::plan_tiles({height, width}, config);
            const QString broken = broken_rule(plan, config);
            QVERIFY2(broken.isEmpty(),
                     qPrintable(QStringLiteral("%1x%2: %3").arg(width).arg(height).arg(broken)));
            QVERIFY2(plan.canvas.width == turned.canvas.height &&
                         plan.canvas.height == turned.canvas.width,
                     qPrintable(QStringLiteral("%1x%2 turned").arg(width).arg(height)));
            most = std::max(most, plan.tokens);
        };
        for (int width = 1; width <= 4200; width += 21)
            for (int height = 1; height <= 4200; height += 21) check(width, height);
        std::mt19937 random(7);
        for (int i = 0; i < 40000; ++i)
            check(static_cast<int>(random() % 4200) + 1, static_cast<int>(random() % 4200) + 1);
        for (int size = 1; size <= 4200; ++size) check(size, 4200), check(1008, size);
        check(1008, 2016);
        QCOMPARE(most, kMostTokens);
    }

    void indexesEachPatchOnceAtAnySize() {
        for (const int tile : {168, 336}) {
            const PreprocessConfig config = preprocess_config(tile);
            std::mt19937 random(11);
            for (int i = 0; i < 400; ++i) {
                const int width = static_cast<int>(random() % 4200) + 1;
                const int height = std::clamp(static_cast<int>(random() % 4200) + 1,
                                              (width + 199) / 200, width * 200);
                const TilePlan plan = vision::plan_tiles({width, height}, config);
                const QString broken = broken_index(plan, config);
                QVERIFY2(
                    broken.isEmpty(),
                    qPrintable(QStringLiteral("%1x%2: %3").arg(width).arg(height).arg(broken)));
            }
        }
    }

    void keepsThinPicturesAndRefusesThinner() {
        const PreprocessConfig config = preprocess_config(336);
        for (const Size size : {Size{200, 1}, {1, 200}, {32768, 164}, {164, 32768}, {20000, 100}}) {
            const TilePlan plan = vision::plan_tiles(size, config);
            QCOMPARE(broken_rule(plan, config), QString());
            QCOMPARE(broken_index(plan, config), QString());
        }
        for (const Size size : {Size{201, 1}, {1, 3000}, {0, 5}, {5, 0}, {-1, 5}}) {
            const auto error = error_of([&] { vision::plan_tiles(size, config); });
            QVERIFY(error && error->category() == Category::kInput);
        }
    }

    void roundsTheResizedPictureDown() {
        // 7 x 3 into 4 x 4: 4 x 1 at row 1 (model-spec 14.6), told apart by an odd grid of one
        // tile.
        PreprocessConfig config = preprocess_config(336);
        config.tile_size = 4;
        config.patch_size = 2;
        config.grids = {{4, 4}};
        const TilePlan plan = vision::plan_tiles({7, 3}, config);
        QVERIFY((plan.resized == Size{4, 1}));
        QCOMPARE(plan.offset_y, 1);
        vision::Image white{7, 3, std::vector<std::uint8_t>(7 * 3 * 3, 255)};
        const vision::TiledImage cut = vision::cut_tiles(white, config);
        QCOMPARE(cut.tiles.size(), std::size_t{2 * 4 * 4 * 3});
        for (std::size_t i = 0; i < 48; ++i) {
            QCOMPARE(cut.tiles[i], 255);  // the thumbnail is stretched
            QCOMPARE(cut.tiles[48 + i], i / 12 == 1 ? 255 : 0);
        }
    }

    void equalsTheReferenceOnGoldenPictures_data() {
        QTest::addColumn<QString>("path");
        QTest::addColumn<QJsonObject>("golden");
        int found = 0;
        for (const char* folder : {"02_square", "03_wide", "04_tall", "05_chart", "06_two_images",
                                   "08_multi_turn", "09_resized"}) {
            const QString base = data_path(QStringLiteral("golden/") + folder + "/");
            for (const QJsonValue& image : read_json(base + "golden.json")["images"].toArray()) {
                const QString file = image["file"].toString();
                QTest::addRow("%s/%s", folder, qPrintable(file)) << base + file << image.toObject();
                ++found;
            }
        }
        QVERIFY(found >= 8);
    }

    void equalsTheReferenceOnGoldenPictures() {
        QFETCH(QString, path);
        QFETCH(QJsonObject, golden);
        const PreprocessConfig config = preprocess_config(168);
        const vision::Image image = vision::load_image(path.toStdString());
        QCOMPARE(image.width, golden["width"].toInt());
        QCOMPARE(image.height, golden["height"].toInt());
        const vision::TiledImage cut = vision::cut_tiles(image, config);
        QCOMPARE(cut.plan.canvas.width, golden["grid"][0].toInt());
        QCOMPARE(cut.plan.canvas.height, golden["grid"][1].toInt());
        QCOMPARE(cut.plan.views(), golden["tiles"].toInt());
        QCOMPARE(cut.plan.tokens, std::int64_t{golden["tokens"].toInt()});

        const QJsonArray hashes = golden["tile_u8_sha256"].toArray();
        QCOMPARE(static_cast<int>(hashes.size()), cut.plan.views());
        const std::ptrdiff_t tile_bytes = std::ptrdiff_t{config.tile_size} * config.tile_size * 3;
        for (int i = 0; i < cut.plan.views(); ++i) {
            const std::vector<std::uint8_t> tile(cut.tiles.begin() + i * tile_bytes,
                                                 cut.tiles.begin() + (i + 1) * tile_bytes);
            QCOMPARE(sha256(tile), hashes[i].toString());
        }
        QCOMPARE(sha256(cut.tiles), golden["tiles_u8_sha256"].toString());
        QCOMPARE(sha256(vision::feature_index(cut.plan, config)),
                 golden["feature_index_sha256_i32"].toString());

        double sum = 0.0, abs_sum = 0.0;
        for (std::size_t i = 0; i < cut.tiles.size(); ++i) {
            const auto c = i % 3;
            const double v = (cut.tiles[i] / 255.0 - static_cast<double>(config.mean[c])) /
                             static_cast<double>(config.std[c]);
            sum += v;
            abs_sum += std::abs(v);
        }
        // fp32 pixels of about 1 in the reference: an error of 1e-7 each at most.
        const double tolerance = 2e-7 * static_cast<double>(cut.tiles.size());
        QVERIFY(std::abs(sum - golden["pixel_sum"].toDouble()) <= tolerance);
        QVERIFY(std::abs(abs_sum - golden["pixel_abs_sum"].toDouble()) <= tolerance);
    }
};

QTEST_GUILESS_MAIN(TilingTest)
#include "tiling_test.moc"

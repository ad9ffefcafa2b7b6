// Decoding against Pillow's pixels, and everything a picture file may do wrong.
#include <sys/stat.h>
#include <zlib.h>

#include <QTemporaryDir>
#include <cstdlib>
#include <opencv2/imgcodecs.hpp>
#include <random>
#include <string>

#include "tests/vision/picture_helpers.h"
#include "vision/image/exif.h"
#include "vision/image/image.h"

using namespace longview;
using namespace longview::test;
using vision::DecodeOptions;
using vision::Image;

namespace {

QByteArray sample(const char* name) {
    return read_file(data_path(QStringLiteral("images/") + QLatin1String(name)));
}

Image decode(const QByteArray& file, const char* name = "picture",
             const DecodeOptions& options = {}) {
    return vision::decode_image(as_bytes(file), name, options);
}

std::optional<Error> decode_error(const QByteArray& file, const DecodeOptions& options = {}) {
    return error_of([&] { decode(file, "picture", options); });
}

bool is_error(const std::optional<Error>& error, Category category, const char* text) {
    if (!error) {
        qWarning("no error");
    } else if (error->category() != category || !QByteArray(error->what()).contains(text)) {
        qWarning("%s: %s", category_name(error->category()), error->what());
    } else {
        return true;
    }
    return false;
}

QByteArray be32(std::uint32_t value) {
    QByteArray out;
    for (int shift = 24; shift >= 0; shift -= 8) out.append(static_cast<char>(value >> shift));
    return out;
}

QByteArray png_chunk(const char* type, const QByteArray& data) {
    const QByteArray body = type + data;
    const auto sum = crc32_z(0, reinterpret_cast<const Bytef*>(body.constData()),
                             static_cast<z_size_t>(body.size()));
    return be32(static_cast<std::uint32_t>(data.size())) + body +
           be32(static_cast<std::uint32_t>(sum));
}

QByteArray png_start(std::uint32_t width, std::uint32_t height, char depth = 8, char color = 2) {
    return QByteArray("\x89PNG\r\n\x1A\n", 8) +
           png_chunk("IHDR", be32(width) + be32(height) + depth + color + QByteArray(3, '\0'));
}

QByteArray zlib_stream(const QByteArray& raw) {
    return qCompress(raw, 9).mid(4);
}

QByteArray png(std::uint32_t width, std::uint32_t height, const QByteArray& raw, char depth = 8,
               char color = 2) {
    return png_start(width, height, depth, color) + png_chunk("IDAT", zlib_stream(raw)) +
           png_chunk("IEND", {});
}

QStringList sample_names() {
    return read_json(data_path("images/expected.json"))["files"].toObject().keys();
}

}  // namespace

class ImageTest : public QObject {
    Q_OBJECT

  private slots:
    void equalsPillow_data() {
        QTest::addColumn<QString>("name");
        QTest::addColumn<QJsonObject>("expected");
        const QJsonObject files = read_json(data_path("images/expected.json"))["files"].toObject();
        QVERIFY(files.size() >= 80);
        for (const QString& name : files.keys())
            QTest::addRow("%s", qPrintable(name)) << name << files[name].toObject();
    }

    void equalsPillow() {
        QFETCH(QString, name);
        QFETCH(QJsonObject, expected);
        const QByteArray file = sample(qPrintable(name));
        const Image image = decode(file, qPrintable(name));
        QCOMPARE(image.width, expected["width"].toInt());
        QCOMPARE(image.height, expected["height"].toInt());
        const int tolerance = expected["tolerance"].toInt();
        if (tolerance == 0) {
            QCOMPARE(sha256(image.rgb), expected["sha256"].toString());
            return;
        }
        const Image wanted = decode(sample(qPrintable(name + ".png")));
        QCOMPARE(sha256(wanted.rgb), expected["sha256"].toString());
        int most = 0;
        for (std::size_t i = 0; i < image.rgb.size(); ++i)
            most = std::max(most, std::abs(int{image.rgb[i]} - int{wanted.rgb[i]}));
        QVERIFY2(most <= tolerance, qPrintable(QString::number(most)));
    }

    void readsHeadersWithoutDecoding() {
        const QByteArray turned = sample("exif6.jpg");
        const auto header = vision::read_image_header(as_bytes(turned.left(600)), "picture");
        QCOMPARE(header.format, vision::ImageFormat::kJpeg);
        QCOMPARE(header.width, 37);
        QCOMPARE(header.height, 23);
        QCOMPARE(header.orientation, 6);
        QCOMPARE(decode(turned).width, 23);
    }

    void looksAtTheContentNotAtTheName() {
        const Image image = decode(sample("rgb24.bmp"), "holiday.jpg");
        QCOMPARE(image.width, 37);
        QVERIFY(is_error(decode_error("%PDF-1.7 and so on"), Category::kUnsupported, "PDF"));
    }

    void putsTransparencyOnTheChosenBackground() {
        // One row: opaque, half and fully transparent red.
        const QByteArray raw("\0\xFF\0\0\xFF\xFF\0\0\x80\xFF\0\0\0", 13);
        const QByteArray file = png(3, 1, raw, 8, 6);
        DecodeOptions options;
        const std::vector<std::uint8_t> white = {255, 0, 0, 255, 127, 127, 255, 255, 255};
        QCOMPARE(decode(file, "picture", options).rgb, white);
        options.background = vision::AlphaBackground::kBlack;
        const std::vector<std::uint8_t> black = {255, 0, 0, 128, 0, 0, 0, 0, 0};
        QCOMPARE(decode(file, "picture", options).rgb, black);
    }

    void namesMeasuredValueAndLimit() {
        const auto huge = decode_error(png_start(65535, 65535));
        QVERIFY(is_error(huge, Category::kInput, "65,535 x 65,535"));
        QVERIFY(is_error(huge, Category::kInput, "32,768"));
        QVERIFY(is_error(huge, Category::kInput, "picture is"));
        QVERIFY(is_error(decode_error(png_start(32768, 32767, 1, 0)), Category::kInput,
                         "1,073,709,056 pixels in all; the limit is 100,000,000"));
        QVERIFY(is_error(decode_error(png_start(1, 30000)), Category::kInput, "at most 200 times"));
        DecodeOptions options;
        options.max_pixels = 37 * 23 - 1;
        for (const char* name :
             {"rgb8.png", "444.jpg", "rgb24.bmp", "palette.gif", "lossless.webp", "raw.tif"})
            QVERIFY(is_error(decode_error(sample(name), options), Category::kInput,
                             "the limit is 850"));
        options.max_pixels = 37 * 23;
        options.max_side = 37;
        QCOMPARE(decode(sample("rgb8.png"), "picture", options).width, 37);
    }

    void refusesBombs() {
        // 20 MB of zeros behind the header of a small picture.
        const QByteArray zeros(20 << 20, '\0');
        QVERIFY(is_error(decode_error(png(100, 100, zeros)), Category::kInput, "more data"));
        // A large picture with next to no data.
        QVERIFY(is_error(decode_error(png(9000, 9000, "abc")), Category::kInput, "too little"));
        // A block that says it has a gigabyte of text.
        const QByteArray text = png_start(8, 8) + be32(1 << 30) + "tEXt" + "hello";
        QVERIFY(is_error(decode_error(text), Category::kInput, "incomplete"));
        // A JPEG whose header promises far more blocks than its data can hold.
        QByteArray jpeg = sample("grey.jpg");
        const auto frame = jpeg.indexOf("\xFF\xC0");
        jpeg.replace(frame + 5, 4, QByteArray("\x1F\xFF\x1F\xFF", 4));
        QVERIFY(is_error(decode_error(jpeg), Category::kInput, "missing"));
    }

    void acceptsLargeNotesBesideThePixels() {
        const QByteArray small = png(1, 1, QByteArray("\0\1\2\3", 4));
        QByteArray noted = small;
        noted.insert(33, png_chunk("tEXt", QByteArray(5 << 20, 'x')));
        QCOMPARE(decode(noted).rgb, decode(small).rgb);
    }

    void refusesEmptyAndForeignFiles_data() {
        QTest::addColumn<QByteArray>("file");
        QTest::addColumn<int>("category");
        QTest::addColumn<QByteArray>("text");
        const auto row = [](const char* name, const QByteArray& file, Category category,
                            const char* text) {
            QTest::newRow(name) << file << static_cast<int>(category) << QByteArray(text);
        };
        row("empty", {}, Category::kInput, "is empty");
        row("one byte", "x", Category::kInput, "only 1 bytes");
        row("text", "Dear reader, this is no picture.", Category::kUnsupported, "PNG, JPEG, BMP");
        row("svg", "<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
            Category::kUnsupported, "SVG");
        row("heic",
            QByteArray("\0\0\0\x18"
                       "ftypheic\0\0\0\0",
                       16),
            Category::kUnsupported, "HEIC");
        row("avif",
            QByteArray("\0\0\0\x18"
                       "ftypavif\0\0\0\0",
                       16),
            Category::kUnsupported, "AVIF");
        row("video",
            QByteArray("\0\0\0\x18"
                       "ftypisom\0\0\0\0",
                       16),
            Category::kUnsupported, "video");
        row("pdf", "%PDF-1.4 ..............", Category::kUnsupported, "add it as a document");
        row("arithmetic jpeg",
            QByteArray("\xFF\xD8\xFF\xC9\0\x0B\x08\0\x08\0\x08\1\1\x11\0\xFF\xD9", 17),
            Category::kUnsupported, "arithmetic");
        row("rle bmp", sample("P8.bmp").replace(30, 1, "\1"), Category::kUnsupported, "run-length");
        row("float tiff", sample("rgb16_little.tif").replace("\x15\1\3\0", "\x53\1\3\0"),
            Category::kInput, "order");
    }

    void refusesEmptyAndForeignFiles() {
        QFETCH(QByteArray, file);
        QFETCH(int, category);
        QFETCH(QByteArray, text);
        QVERIFY(is_error(decode_error(file), static_cast<Category>(category), text.constData()));
    }

    void neverShowsHalfAPicture() {
        for (const QString& name : sample_names()) {
            const QByteArray file = sample(qPrintable(name));
            const Image whole = decode(file);
            const int step = std::max(1, static_cast<int>(file.size()) / 300);
            for (int length = 0; length < file.size(); length += step) {
                try {
                    // Only what follows the last pixel may be missing.
                    QVERIFY2(decode(file.left(length)).rgb == whole.rgb,
                             qPrintable(QStringLiteral("%1 cut to %2").arg(name).arg(length)));
                } catch (const Error& error) {
                    QVERIFY2(error.category() == Category::kInput, error.what());
                    QVERIFY2(QByteArray(error.what()).contains("picture"), error.what());
                }
            }
        }
    }

    void survivesFlippedBits() {
        std::mt19937 random(3);
        DecodeOptions options;
        options.max_pixels = 1'000'000;
        int refused = 0;
        for (const QString& name : sample_names()) {
            const QByteArray file = sample(qPrintable(name));
            for (int i = 0; i < 60; ++i) {
                QByteArray damaged = file;
                for (int flips = 0; flips < 1 + i % 3; ++flips) {
                    const auto bit = random() % static_cast<unsigned>(file.size() * 8);
                    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
                }
                try {
                    const Image image = decode(damaged, "picture", options);
                    QCOMPARE(image.rgb.size(), static_cast<std::size_t>(image.width) *
                                                   static_cast<std::size_t>(image.height) * 3);
                } catch (const Error& error) {
                    ++refused;
                    QVERIFY2(error.category() == Category::kInput ||
                                 error.category() == Category::kUnsupported,
                             error.what());
                }
            }
        }
        QVERIFY(refused > 1000);
    }

    void noticesDamagedPngData() {
        QByteArray file = sample("rgb8.png");
        const auto at = file.indexOf("IDAT") + 20;
        file[at] = static_cast<char>(file[at] ^ 1);
        QVERIFY(is_error(decode_error(file), Category::kInput, "checksum of its IDAT block"));
    }

    void readsJpegsWithRestartMarkersAndNoticesALostOne() {
        cv::Mat noise(64, 64, CV_8UC3);
        cv::randu(noise, 0, 255);
        std::vector<uchar> bytes;
        cv::imencode(".jpg", noise, bytes, {cv::IMWRITE_JPEG_RST_INTERVAL, 2});
        QByteArray file(reinterpret_cast<const char*>(bytes.data()),
                        static_cast<int>(bytes.size()));
        const auto first = file.indexOf("\xFF\xD1"), second = file.indexOf("\xFF\xD2");
        QVERIFY(first > 0 && second > first);
        const cv::Mat wanted = cv::imdecode(bytes, cv::IMREAD_COLOR);
        const Image image = decode(file);
        double difference = 0.0;
        for (std::size_t i = 0; i < image.rgb.size(); ++i)
            difference += std::abs(image.rgb[i] - wanted.data[i / 3 * 3 + 2 - i % 3]);
        // Chroma of noise is brought up to size differently, so single pixels differ more.
        QVERIFY(difference / static_cast<double>(image.rgb.size()) <= 8.0);
        file.remove(first, second - first);
        QVERIFY(is_error(decode_error(file), Category::kInput, "missing"));
    }

    void readsOrientationFromDamagedNotesSafely() {
        std::mt19937 random(5);
        for (int i = 0; i < 20000; ++i) {
            std::vector<std::byte> bytes(random() % 64);
            for (std::byte& b : bytes) b = static_cast<std::byte>(random() % 16);
            const QByteArray head = i % 2 == 0 ? QByteArray("II*\0", 4) : QByteArray("MM\0*", 4);
            if (bytes.size() >= 8)
                std::copy_n(reinterpret_cast<const std::byte*>(head.data()), 4, bytes.begin());
            const int orientation = vision::exif_orientation(bytes);
            QVERIFY(orientation >= 1 && orientation <= 8);
        }
        // A directory that begins on itself, and one beyond the end.
        QCOMPARE(vision::exif_orientation(as_bytes(QByteArray("II*\0\4\0\0\0\1\0", 10))), 1);
        QCOMPARE(vision::exif_orientation(as_bytes(QByteArray("MM\0*\xFF\xFF\xFF\xFF", 8))), 1);
    }

    void loadsRegularFilesOnly() {
        const QTemporaryDir folder;
        const std::string base = folder.path().toStdString() + "/";
        QVERIFY(is_error(error_of([&] { vision::load_image(base + "none.png"); }),
                         Category::kNotFound, "none.png"));
        QVERIFY(is_error(error_of([&] { vision::load_image(base); }), Category::kInput,
                         "is not a file"));
        QCOMPARE(mkfifo((base + "pipe").c_str(), 0600), 0);
        QVERIFY(is_error(error_of([&] { vision::load_image(base + "pipe"); }), Category::kInput,
                         "is not a file"));
        QVERIFY(is_error(error_of([] { vision::load_image("/dev/zero"); }), Category::kInput,
                         "is not a file"));
        QCOMPARE(vision::load_image(data_path("images/rgb8.png").toStdString()).width, 37);
    }
};

QTEST_GUILESS_MAIN(ImageTest)
#include "image_test.moc"

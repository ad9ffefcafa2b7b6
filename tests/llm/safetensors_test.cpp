#include "llm/checkpoint/safetensors.h"

#include <QFile>
#include <QTest>
#include <random>

#include "tests/llm/errors.h"
#include "tests/llm/fake_checkpoint.h"

namespace llm = longview::llm;
namespace test = longview::test;
using llm::StoredTensor;
using longview::DType;

namespace {

constexpr const char* kName = "Shard a.safetensors";

std::string with_length(const std::string& header, std::uint64_t length) {
    std::string prefix;
    for (int i = 0; i < 8; ++i) prefix += static_cast<char>(length >> (8 * i) & 0xFF);
    return prefix + header;
}

/// A file with this header and `data` bytes of zeros.
std::string file_of(const std::string& header, std::size_t data = 0) {
    return with_length(header, header.size()) + std::string(data, '\0');
}

std::vector<StoredTensor> read(const std::string& file) {
    return llm::read_safetensors_header(std::as_bytes(std::span(file)), kName);
}

/// One tensor named "a", as the header says it.
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"("a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
}

/// Length and header of the demo model's first shard; `size` is that of the whole file.
std::string demo_header(std::uint64_t* size = nullptr) {
    QFile file(LONGVIEW_DEMO_MODEL "/model-00001-of-00003.safetensors");
    if (!file.open(QIODevice::ReadOnly)) qFatal("cannot read the demo model");
    if (size != nullptr) *size = static_cast<std::uint64_t>(file.size());
    const std::string start = file.read(8).toStdString();
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(start[i]);
    return start + file.read(static_cast<qint64>(length)).toStdString();
}

}  // namespace

class SafetensorsTest : public QObject {
    Q_OBJECT

  private slots:
    void readsTensorsInOrderOfOffset();
    void acceptsEmptyTensorsScalarsAndPadding();
    void refusesBrokenFiles_data();
    void refusesBrokenFiles();
    void refusesDeepNestingQuickly();
    void refusesTooManyTensors();
    void everyTruncationOfARealHeaderIsRefused();
    void truncatedDataIsAnIncompleteDownload();
    void mutatedHeadersNeverCrash();
};

void SafetensorsTest::readsTensorsInOrderOfOffset() {
    const std::string header =
        R"({"__metadata__":{"format":"pt"},"b":{"data_offsets":[8,20],"shape":[3],"dtype":"F32"},)"
        R"("a":{"dtype":"BF16","shape":[2,1,2],"data_offsets":[0,8]},)"
        R"("c":{"dtype":"F16","shape":[1],"data_offsets":[20,22]}})";
    const std::string padded = header + std::string(8 - header.size() % 8, ' ');
    const auto tensors = read(file_of(padded, 22));
    QCOMPARE(tensors.size(), std::size_t{3});
    QCOMPARE(tensors[0].name, "a");
    QVERIFY(tensors[0].dtype == DType::kBF16);
    QCOMPARE(tensors[0].rank, 3);
    QVERIFY(tensors[0].shape == (std::array<std::int64_t, 4>{2, 1, 2, 0}));
    QCOMPARE(tensors[0].offset, 8 + padded.size());
    QCOMPARE(tensors[0].size_bytes, std::uint64_t{8});
    QCOMPARE(tensors[1].name, "b");
    QVERIFY(tensors[1].dtype == DType::kF32);
    QCOMPARE(tensors[1].offset, 8 + padded.size() + 8);
    QCOMPARE(tensors[2].name, "c");
    QVERIFY(tensors[2].dtype == DType::kF16);
}

void SafetensorsTest::acceptsEmptyTensorsScalarsAndPadding() {
    QCOMPARE(read(file_of("{}")).size(), std::size_t{0});
    const std::string header = R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                               R"("b":{"dtype":"BF16","shape":[0,7],"data_offsets":[4,4]},)"
                               R"("c":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}})";
    const auto tensors = read(file_of(header + std::string(8 - header.size() % 8, ' '), 8));
    QCOMPARE(tensors.size(), std::size_t{3});
    QCOMPARE(tensors[0].rank, 0);
    QCOMPARE(tensors[1].size_bytes, std::uint64_t{0});
    QCOMPARE(tensors[2].name, "c");
}

void SafetensorsTest::refusesBrokenFiles_data() {
    QTest::addColumn<QByteArray>("file");
    QTest::addColumn<QString>("cause");
    const auto row = [](const char* name, const std::string& file, const char* cause) {
        QTest::newRow(name) << QByteArray::fromStdString(file) << QString(cause);
    };
    const std::string good = "{" + entry("BF16", "[2,2]", "[0,8]") + "}  ";
    const std::string incomplete = "the download is incomplete. Nothing was loaded.";

    row("empty", "", "input: Shard a.safetensors is empty: the download did not finish");
    row("one byte", "x", "input: Shard a.safetensors has only 1 bytes: the download is incomplete");
    row("seven bytes", std::string(7, '\0'), "has only 7 bytes");
    row("no header", std::string(8, '\0'), "has no header: its first 8 bytes say that it is 0");
    row("length 1", with_length("{}", 1), "has no header: its first 8 bytes say that it is 1");
    row("length beyond the file", with_length("{}", 300),
        "is 10 bytes but its header needs 308 bytes: the download is incomplete");
    row("length at the limit", with_length("{}", 100'000'000), "but its header needs 0.10 GB");
    row("length over the limit", with_length("{}", 100'000'001),
        "is not a safetensors file: its first 8 bytes give a header of 100000001 bytes");
    row("length 2^63", with_length("{}", std::uint64_t{1} << 63), "9223372036854775808 bytes");
    row("length 2^64-1", with_length("{}", ~std::uint64_t{0}), "18446744073709551615 bytes");
    row("LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 4\n",
        "input: Shard a.safetensors is a Git LFS pointer, not the file itself: run 'git lfs pull'");
    row("web page", "<!doctype html><html><title>404</title></html>",
        "input: Shard a.safetensors is a web page, not the file itself");
    row("web page in capitals", "\n <HTML><HEAD>", "is a web page");
    row("GGUF", std::string("GGUF\3\0\0\0", 8), "is a GGUF file");
    row("zip", std::string("PK\3\4\x14\0\x08\x08", 8), "is a zip file");

    row("not an object", file_of("[1,2] "), "its header begins with \"[\" and not with {");
    row("not JSON", file_of("{nonsense}"), "not valid JSON at line 1, column 3: syntax error");
    row("cut JSON", file_of(good.substr(0, 30)), "not valid JSON");
    row("two documents", file_of("{}{}"), "not valid JSON");
    row("NUL after the object", file_of(std::string("{}\0\0\0\0\0\0", 8)), "NUL byte");
    row("invalid UTF-8", file_of("{\"\xc3\x28\":1}"), "not valid JSON");
    row("entry is a number", file_of(R"({"a":1})"),
        "the header has 1 for tensor \"a\", where an object is expected");
    row("entry is a list", file_of(R"({"a":[]})"), "the header has a list for tensor \"a\"");
    row("entry is null", file_of(R"({"a":null})"), "the header has null for tensor \"a\"");
    row("metadata is no object", file_of(R"({"__metadata__":"x"})"),
        "the header has \"x\" in __metadata__, where an object is expected");
    row("metadata is a list", file_of(R"({"__metadata__":[]})"), "a list in __metadata__");
    row("metadata holds a number", file_of(R"({"__metadata__":{"a":1}})"),
        "the header has 1 in __metadata__, where a string is expected");
    row("metadata holds an object", file_of(R"({"__metadata__":{"a":{}}})"), "an object in __met");
    row("metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})"), "twice");
    row("metadata key twice", file_of(R"({"__metadata__":{"a":"","a":""}})"),
        "the header has \"a\" twice in __metadata__");
    row("unknown key", file_of(R"({"a":{"dtype":"BF16","strides":[1]}})"),
        "the header has the unknown key \"strides\" for tensor \"a\"");
    row("dtype missing", file_of(R"({"a":{"shape":[1],"data_offsets":[0,2]}})", 2),
        "the header lacks dtype for tensor \"a\"");
    row("shape missing", file_of(R"({"a":{"dtype":"BF16","data_offsets":[0,2]}})", 2),
        "the header lacks shape for tensor \"a\"");
    row("offsets missing", file_of(R"({"a":{"dtype":"BF16","shape":[1]}})"),
        "the header lacks data_offsets for tensor \"a\"");
    row("dtype twice", file_of(R"({"a":{"dtype":"BF16","dtype":"F32"}})"),
        "the header has dtype twice for tensor \"a\"");
    row("dtype is a number", file_of(R"({"a":{"dtype":16}})"),
        "where a string (dtype) is expected");
    row("shape is a string", file_of(R"({"a":{"shape":"2"}})"),
        "where a list of whole numbers (shape) is expected");
    row("nested shape", file_of("{" + entry("BF16", "[[2]]", "[0,4]") + "}", 4),
        "the header has a list for tensor \"a\"");
    row("negative extent", file_of("{" + entry("BF16", "[-2]", "[0,4]") + "}", 4),
        "the header has -2 for tensor \"a\"");
    row("fractional extent", file_of("{" + entry("BF16", "[2.0]", "[0,4]") + "}", 4),
        "the header has \"2.0\" for tensor \"a\"");
    row("extent 2^64", file_of("{" + entry("BF16", "[18446744073709551616]", "[0,4]") + "}", 4),
        "the header has \"18446744073709551616\"");
    row("true in offsets", file_of("{" + entry("BF16", "[2]", "[0,true]") + "}", 4),
        "the header has true for tensor \"a\", where a list of two whole numbers");
    row("no name", file_of(R"({"":{}})"), "a tensor without a name");
    row("long name", file_of("{\"" + std::string(513, 'n') + "\":{}}"),
        "a tensor name of 513 bytes; the limit is 512");
    row("name with control character", file_of(R"({"a\u0000b":{}})"),
        "a tensor name with control characters: \"a?b\"");
    row("tensor twice",
        file_of("{" + entry("BF16", "[2]", "[0,4]") + "," + entry("BF16", "[2]", "[4,8]") + "}", 8),
        "tensor \"a\" appears twice in the header");

    row("unknown dtype", file_of("{" + entry("X16", "[2]", "[0,4]") + "}", 4),
        "input: Shard a.safetensors: tensor \"a\" has the unknown data type \"X16\"");
    row("other dtype", file_of("{" + entry("F8_E4M3", "[2]", "[0,2]") + "}", 2),
        "unsupported: Shard a.safetensors: tensor \"a\" has the data type \"F8_E4M3\"; BF16, F16 "
        "and F32 are supported");
    row("rank 5", file_of("{" + entry("BF16", "[1,1,1,1,2]", "[0,4]") + "}", 4),
        "unsupported: Shard a.safetensors: tensor \"a\" has 5 dimensions; at most 4");
    row("rank 100",
        file_of(
            "{" + entry("BF16", "[1" + QByteArray(",1").repeated(99).toStdString() + "]", "[0,2]") +
                "}",
            2),
        "more than 8 numbers in a list for tensor \"a\"; so many dimensions");
    row("size overflows", file_of("{" + entry("F32", "[4294967296,4294967296]", "[0,4]") + "}", 4),
        "has a shape whose size overflows 64 bits");
    row("size overflows by the element",
        file_of("{" + entry("F32", "[4611686018427387904]", "[0,0]") + "}"),
        "has a shape whose size overflows 64 bits");
    row("zero hides an overflow",
        file_of("{" + entry("F32", "[0,18446744073709551615]", "[0,0]") + "}"),
        "has a shape whose size overflows 64 bits");
    row("one offset", file_of("{" + entry("BF16", "[2]", "[0]") + "}", 4),
        "has 1 data_offsets; begin and end are expected");
    row("three offsets", file_of("{" + entry("BF16", "[2]", "[0,4,8]") + "}", 8),
        "has 3 data_offsets");
    row("reversed", file_of("{" + entry("BF16", "[2]", "[4,0]") + "}", 4),
        "tensor \"a\" ends at byte 0 before it begins at 4");
    row("wrong size", file_of("{" + entry("BF16", "[3]", "[0,4]") + "}", 4),
        "has 4 bytes, but its shape and data type need 6");
    row("hole at the start", file_of("{" + entry("BF16", "[2]", "[4,8]") + "}", 8),
        "tensor \"a\" leaves a hole: it begins at byte 4 of the data, the one before ends at 0");
    const std::string second = R"(,"b":{"dtype":"BF16","shape":[2],"data_offsets":)";
    row("hole", file_of("{" + entry("BF16", "[2]", "[0,4]") + second + "[6,10]}}", 10),
        "tensor \"b\" leaves a hole: it begins at byte 6");
    row("overlap", file_of("{" + entry("BF16", "[2]", "[0,4]") + second + "[2,6]}}", 6),
        "tensor \"b\" overlaps: it begins at byte 2");
    row("same place", file_of("{" + entry("BF16", "[2]", "[0,4]") + second + "[0,4]}}", 4),
        "overlaps: it begins at byte 0");
    row("past the end", file_of("{" + entry("BF16", "[2]", "[0,4]") + "}", 3), incomplete.c_str());
    row("far past the end",
        file_of("{" + entry("F32", "[4000000000000000000]", "[0,16000000000000000000]") + "}", 4),
        "but its header needs 16000000000.00 GB");
    row("end beyond 64 bits with the header",
        file_of("{" + entry("BF16", "[9223372036854775807]", "[0,18446744073709551614]") + "}"),
        incomplete.c_str());
    row("trailing bytes", file_of(good, 11), "has 3 bytes after its last tensor");
    row("unaligned",
        file_of("{" + entry("BF16", "[2]", "[0,4]") + "}" +
                    std::string(entry("BF16", "[2]", "[0,4]").size() % 2 + 1, ' '),
                4),
        "which is no multiple of its element size");
}

void SafetensorsTest::refusesBrokenFiles() {
    QFETCH(QByteArray, file);
    QFETCH(QString, cause);
    LONGVIEW_VERIFY_ERROR(read(file.toStdString()), ({QString(kName), cause}));
}

void SafetensorsTest::refusesDeepNestingQuickly() {
    LONGVIEW_VERIFY_ERROR(read(file_of("{\"a\":{\"dtype\":" + std::string(1'000'000, '{'))),
                          ({"input:", "the header has an object for tensor"}));
    LONGVIEW_VERIFY_ERROR(read(file_of("{\"a\":{\"shape\":" + std::string(1'000'000, '['))),
                          ({"input:", "the header has a list for tensor"}));
}

void SafetensorsTest::refusesTooManyTensors() {
    std::string header = "{";
    for (std::size_t i = 0; i <= llm::kMaxTensorsPerFile; ++i) {
        header += (i > 0 ? ",\"" : "\"") + std::to_string(i) +
                  R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
    }
    LONGVIEW_VERIFY_ERROR(read(file_of(header + "}")),
                          ({"input:", "the header names more than 250000 tensors"}));
}

void SafetensorsTest::everyTruncationOfARealHeaderIsRefused() {
    const std::string header = demo_header();
    QVERIFY(header.size() > 1000);
    for (std::size_t size = 0; size < header.size(); ++size) {
        // The file ends here ...
        LONGVIEW_VERIFY_ERROR(read(header.substr(0, size)), ({"input: ", kName}));
        // ... or the length says that the header does; further on the same cuts come again, and a
        // fifth of them is enough.
        if (size < 8 || (size > 2500 && size % 5 != 0)) continue;
        LONGVIEW_VERIFY_ERROR(read(with_length(header.substr(8, size - 8), size - 8)),
                              ({"input: ", kName}));
    }
}

void SafetensorsTest::truncatedDataIsAnIncompleteDownload() {
    std::uint64_t size = 0;
    const std::string header = demo_header(&size);
    std::string file = header;
    file.resize(size);
    QVERIFY(!read(file).empty());
    file.resize(size - 1);
    LONGVIEW_VERIFY_ERROR(
        read(file), ({"input: ", QString("is %1 bytes but its header needs %2 bytes: the download "
                                         "is incomplete. Nothing was loaded.")
                                     .arg(size - 1)
                                     .arg(size)}));
}

void SafetensorsTest::mutatedHeadersNeverCrash() {
    std::uint64_t size = 0;
    const std::string header = demo_header(&size).substr(0, 2000);
    std::mt19937_64 random(17);
    int refused = 0;
    constexpr int kMutants = 10'000;
    for (int i = 0; i < kMutants; ++i) {
        std::string mutant = header;
        const auto changes = 1 + random() % 4;
        for (std::uint64_t change = 0; change < changes; ++change) {
            const std::size_t at = random() % mutant.size();
            switch (random() % 4) {
                case 0:
                    mutant[at] = static_cast<char>(random());
                    break;
                case 1:
                    mutant.erase(at, 1 + random() % 16);
                    break;
                case 2:
                    mutant.insert(at, mutant.substr(random() % mutant.size(), 40));
                    break;
                default:
                    mutant[at] = "{}[]\",:0123456789eE-"[random() % 20];
                    break;
            }
            if (mutant.size() < 16) mutant = header;
        }
        // Half of them with a length that fits, so that the parser sees them.
        if (i % 2 == 0) {
            mutant = with_length(mutant.substr(8), mutant.size() - 8);
        }
        const QString error = test::error_of([&] { read(mutant); });
        if (error.startsWith("input: ") || error.startsWith("unsupported: ")) ++refused;
    }
    // The data is missing, so that no mutant is a good file.
    QCOMPARE(refused, kMutants);
}

QTEST_GUILESS_MAIN(SafetensorsTest)
#include "safetensors_test.moc"

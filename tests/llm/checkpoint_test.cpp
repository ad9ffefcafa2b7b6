#include "llm/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <QCoreApplication>
#include <QCryptographicHash>
#include <QElapsedTimer>
#include <QFile>
#include <QProcess>
#include <QTemporaryDir>
#include <QTest>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <thread>

#include "llm/checkpoint/mapped_file.h"
#include "llm/checkpoint/safetensors.h"
#include "tests/llm/errors.h"
#include "tests/llm/fake_checkpoint.h"

namespace fs = std::filesystem;
namespace llm = longview::llm;
namespace test = longview::test;
using llm::Checkpoint;
using llm::CheckpointSummary;
using longview::DType;

namespace {

constexpr const char* kShard0 = "model-00000-of-00003.safetensors";
constexpr const char* kShard1 = "model-00001-of-00003.safetensors";
constexpr const char* kShard2 = "model-00002-of-00003.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string contents(const fs::path& path) {
    return llm::read_whole_file(path, 1 << 30);
}

void replace_in_file(const fs::path& path, const std::string& from, const std::string& to) {
    std::string text = contents(path);
    const std::size_t at = text.find(from);
    if (at == std::string::npos) qFatal("%s is not in %s", from.c_str(), path.c_str());
    test::write_file(path, text.replace(at, from.size(), to));
}

CheckpointSummary::Part part(const std::vector<CheckpointSummary::Part>& parts,
                             const std::string& name) {
    for (const CheckpointSummary::Part& candidate : parts) {
        if (candidate.name == name) return candidate;
    }
    return {};
}

constexpr const char* kReadLostPage = "--read-lost-page";

/// In a process of its own, without Qt's signal handlers: reads beyond the end of a mapping that
/// is not guarded, while another one is.
int read_lost_page(const fs::path& path) {
    test::write_file(path, std::string(8192, 'x'));
    const llm::MappedFile guarded(path);
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    void* const unguarded = mmap(nullptr, 8192, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (unguarded == MAP_FAILED) return 0;
    fs::resize_file(path, 0);
    const char byte = *static_cast<volatile const char*>(unguarded);
    std::printf("survived %d\n", byte);
    return 0;
}

/// A folder with a tiny checkpoint of three shards, gone at the end of the test.
class TinyFolder {
  public:
    explicit TinyFolder(std::uint64_t seed = 1) : path_(folder_.path().toStdString()) {
        test::make_tiny_checkpoint(path_, test::tiny_config(2), seed, 3);
    }
    fs::path operator/(const char* name) const { return path_ / name; }
    const fs::path& path() const { return path_; }
    std::unique_ptr<Checkpoint> open() const { return Checkpoint::open(path_); }

  private:
    QTemporaryDir folder_;
    fs::path path_;
};

}  // namespace

class CheckpointTest : public QObject {
    Q_OBJECT

  private slots:
    void publishedNamesHaveThePublishedHash();
    void publishedShapesAddUp();
    void opensThePublishedModelOfSparseShards();
    void opensTheDemoModel();
    void tinyCheckpointsAreTheSameForTheSameSeed();
    void givesTensorsAsStored();
    void acceptsASingleFileAndOtherTypes();
    void acceptsSymbolicLinks();
    void refusesWhatIsNoModelFolder();
    void namesMissingShards();
    void refusesShardsThatAreNoRegularFiles();
    void namesIncompleteAndForeignShards();
    void refusesSwappedShards();
    void refusesShardsOfAnotherModel();
    void refusesTensorsThatAreNotInTheirShard();
    void refusesMissingAndUnknownTensors();
    void recognisesOtherLayouts();
    void refusesUnsafeIndexes_data();
    void refusesUnsafeIndexes();
    void reportsHarmlessOddities();
    void fingerprintNamesContentAndNotPackaging();
    void noticesChangedFiles();
    void truncationUnderTheMappingReadsAsZeros();
    void otherBusErrorsStillEndTheProcess();
    void hugeSparseFilesAreRefusedByTheirHeader();
    void refusesToReadMoreThanAsked();
};

void CheckpointTest::publishedNamesHaveThePublishedHash() {
    QByteArrayList names;
    int language = 0;
    for (const llm::TensorSpec& spec : llm::expected_tensors(test::published_config())) {
        names.append(QByteArray::fromStdString(spec.name));
        if (spec.name.starts_with("language_model.")) ++language;
    }
    QCOMPARE(names.size(), 8637);
    QCOMPARE(language, 8243);
    std::sort(names.begin(), names.end());
    // Of the released index (model-spec 9.1).
    QCOMPARE(QCryptographicHash::hash(names.join("\n"), QCryptographicHash::Sha256).toHex(),
             QByteArray("d0caf1b714cdfc4caa65b56cbec591668d77b0e2a5d6cf3b5af169531311c886"));
}

void CheckpointTest::publishedShapesAddUp() {
    std::map<std::string, std::vector<std::int64_t>> shapes;
    std::int64_t parameters = 0;
    for (const llm::TensorSpec& spec : llm::expected_tensors(test::published_config())) {
        shapes[spec.name] = spec.shape;
        std::int64_t count = 1;
        for (const std::int64_t extent : spec.shape) count *= extent;
        parameters += count;
    }
    QCOMPARE(parameters, std::int64_t{456'437'219'328});
    using Shape = std::vector<std::int64_t>;
    const std::string layers = "language_model.model.layers.";
    QCOMPARE(shapes.at(layers + "0.self_attn.qkv_proj.weight"), (Shape{24576, 6144}));
    QCOMPARE(shapes.at(layers + "7.self_attn.k_proj.weight"), (Shape{1024, 6144}));
    QCOMPARE(shapes.at(layers + "79.block_sparse_moe.experts.31.w2.weight"), (Shape{6144, 9216}));
    QCOMPARE(shapes.at(layers + "79.block_sparse_moe.experts.31.w3.weight"), (Shape{9216, 6144}));
    QCOMPARE(shapes.at("vision_tower.vision_model.embeddings.patch_embedding.weight"),
             (Shape{1024, 3, 14, 14}));
    QCOMPARE(shapes.at("vision_tower.vision_model.embeddings.position_embedding.weight"),
             (Shape{577, 1024}));
    QCOMPARE(shapes.at("multi_modal_projector.linear_1.weight"), (Shape{6144, 1024}));
}

void CheckpointTest::opensThePublishedModelOfSparseShards() {
    const QTemporaryDir folder;
    const fs::path path = folder.path().toStdString();
    test::write_sparse_checkpoint(path, test::published_config(), 413);
    QVERIFY(fs::exists(path / "model-00000-of-00413.safetensors"));
    QVERIFY(fs::exists(path / "model-00412-of-00413.safetensors"));

    QElapsedTimer timer;
    timer.start();
    const auto checkpoint = Checkpoint::open(path);
    qInfo("opened 413 shards in %.1f ms", static_cast<double>(timer.nsecsElapsed()) / 1e6);

    const CheckpointSummary summary = checkpoint->summary();
    QCOMPARE(summary.shards, 413);
    QCOMPARE(summary.tensors, 8637);
    QCOMPARE(summary.parameters, std::int64_t{456'437'219'328});
    QCOMPARE(summary.active_parameters, std::int64_t{45'944'920'064});
    QCOMPARE(summary.bytes, std::int64_t{912'874'438'656});
    QVERIFY(summary.problems.empty());
    // model-spec 9.3
    QCOMPARE(part(summary.parts, "experts").parameters, std::int64_t{434'865'438'720});
    QCOMPARE(part(summary.parts, "experts").tensors, 7680);
    QCOMPARE(part(summary.parts, "lightning attention").parameters, std::int64_t{17'616'650'240});
    QCOMPARE(part(summary.parts, "softmax attention").parameters, std::int64_t{1'132'462'080});
    QCOMPARE(part(summary.parts, "router gates").parameters, std::int64_t{15'728'640});
    QCOMPARE(part(summary.parts, "norms").parameters, std::int64_t{989'184});
    QCOMPARE(part(summary.parts, "embedding and head").parameters, std::int64_t{2'458'386'432});
    QCOMPARE(part(summary.parts, "vision tower").parameters, std::int64_t{303'505'408});
    QCOMPARE(part(summary.parts, "projector and newline").parameters, std::int64_t{44'058'624});
    QCOMPARE(summary.dtypes.size(), std::size_t{1});
    QCOMPARE(part(summary.dtypes, "BF16").bytes, summary.bytes);

    timer.restart();
    QCOMPARE(checkpoint->fingerprint().size(), std::size_t{32});
    qInfo("fingerprint in %.1f ms", static_cast<double>(timer.nsecsElapsed()) / 1e6);
    checkpoint->check_unchanged();
}

void CheckpointTest::opensTheDemoModel() {
    const auto checkpoint = Checkpoint::open(LONGVIEW_DEMO_MODEL);
    const CheckpointSummary summary = checkpoint->summary();
    QVERIFY(summary.tensors > 0);
    QCOMPARE(static_cast<std::size_t>(summary.tensors),
             llm::expected_tensors(checkpoint->config()).size());
    QVERIFY(summary.problems.empty());
    const longview::HostTensor embedding =
        checkpoint->tensor("language_model.model.embed_tokens.weight");
    QCOMPARE(embedding.rank, 2);
    QCOMPARE(embedding.shape[0], checkpoint->config().text.vocab_size);
    QCOMPARE(embedding.shape[1], checkpoint->config().text.hidden_size);
    LONGVIEW_VERIFY_ERROR(checkpoint->tensor("no.such.tensor"),
                          ({"input: The model in ", "has no tensor \"no.such.tensor\""}));
}

void CheckpointTest::tinyCheckpointsAreTheSameForTheSameSeed() {
    const TinyFolder one(5), same(5), other(6);
    for (const char* name : {kShard0, kShard1, kShard2, kIndex, "config.json"}) {
        QVERIFY(contents(one / name) == contents(same / name));
    }
    QVERIFY(contents(one / kShard1) != contents(other / kShard1));
    QCOMPARE(one.open()->fingerprint(), same.open()->fingerprint());
    QVERIFY(one.open()->fingerprint() != other.open()->fingerprint());
}

void CheckpointTest::givesTensorsAsStored() {
    const TinyFolder folder;
    const auto checkpoint = folder.open();
    std::size_t bytes = 0;
    for (const llm::TensorSpec& spec : llm::expected_tensors(checkpoint->config())) {
        const longview::HostTensor tensor = checkpoint->tensor(spec.name);
        QVERIFY(tensor.dtype == DType::kBF16);
        QCOMPARE(static_cast<std::size_t>(tensor.rank), spec.shape.size());
        QVERIFY(std::equal(spec.shape.begin(), spec.shape.end(), tensor.shape.begin()));
        QCOMPARE(reinterpret_cast<std::uintptr_t>(tensor.data) % 2, std::uintptr_t{0});
        bytes += tensor.size_bytes();
    }
    QCOMPARE(static_cast<std::int64_t>(bytes), checkpoint->summary().bytes);
    // The first shard's data begins with its first tensor.
    const std::string file = contents(folder / kShard0);
    const longview::HostTensor first =
        checkpoint->tensor("language_model.model.embed_tokens.weight");
    const auto header = llm::read_safetensors_header(std::as_bytes(std::span(file)), "first");
    QVERIFY(std::memcmp(first.data, file.data() + header.front().offset, first.size_bytes()) == 0);
}

void CheckpointTest::acceptsASingleFileAndOtherTypes() {
    const QTemporaryDir folder;
    const fs::path path = folder.path().toStdString();
    const llm::ModelConfig config = test::tiny_config(2);
    test::write_file(path / "config.json", test::config_json(config));
    test::write_file(path / "preprocessor_config.json", test::preprocessor_json(config));
    std::vector<test::FakeTensor> tensors;
    for (const llm::TensorSpec& spec : llm::expected_tensors(config)) {
        const bool is_gate = spec.name.find(".gate.") != std::string::npos;
        tensors.push_back({spec.name, is_gate ? "F32" : "F16", spec.shape});
    }
    test::write_file(path / "model.safetensors", test::safetensors_prefix(tensors) +
                                                     std::string(test::data_bytes(tensors), '\0'));
    const CheckpointSummary summary = Checkpoint::open(path)->summary();
    QCOMPARE(summary.shards, 1);
    QCOMPARE(part(summary.dtypes, "F32").tensors, 2);
    QCOMPARE(part(summary.dtypes, "F32").bytes, 2 * 4 * 4 * 64);
    QCOMPARE(part(summary.dtypes, "F16").tensors, summary.tensors - 2);
}

void CheckpointTest::acceptsSymbolicLinks() {
    const TinyFolder folder;
    fs::rename(folder / kShard1, folder / "blob");
    fs::create_symlink("blob", folder / kShard1);
    QCOMPARE(folder.open()->summary().shards, 3);
}

void CheckpointTest::refusesWhatIsNoModelFolder() {
    LONGVIEW_VERIFY_ERROR(Checkpoint::open("/no/such/folder"),
                          ({"not found: The model folder /no/such/folder does not exist."}));
    const TinyFolder folder;
    LONGVIEW_VERIFY_ERROR(Checkpoint::open(folder / kShard0),
                          ({"input:", "is a file; name the folder"}));
    fs::remove(folder / kIndex);
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"not found:",
                                           "holds neither model.safetensors.index.json nor "
                                           "model.safetensors: the download is incomplete"}));
    fs::remove(folder / "config.json");
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"not found:", "/config.json does not exist"}));
}

void CheckpointTest::namesMissingShards() {
    const TinyFolder folder;
    fs::remove(folder / kShard1);
    fs::remove(folder / kShard2);
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"not found: Shard model-00001-of-00003.safetensors is "
                                           "missing from ",
                                           "(2 of 3 shards are): the download is incomplete. "
                                           "Nothing was loaded."}));
}

void CheckpointTest::refusesShardsThatAreNoRegularFiles() {
    const TinyFolder folder;
    fs::remove(folder / kShard1);
    QCOMPARE(mkfifo((folder / kShard1).c_str(), 0600), 0);
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"input:", kShard1, "is not a regular file"}));
    fs::remove(folder / kShard1);
    fs::create_directory(folder / kShard1);
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"input:", kShard1, "is a folder; a file is needed"}));
    fs::remove(folder / kShard1);
    fs::create_symlink("/dev/zero", folder / kShard1);
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"input:", kShard1, "is not a regular file"}));
}

void CheckpointTest::namesIncompleteAndForeignShards() {
    const TinyFolder folder;
    const std::string good = contents(folder / kShard1);
    const auto with = [&](const std::string& bytes) {
        test::write_file(folder / kShard1, bytes);
        return test::error_of([&] { folder.open(); });
    };
    const QString shard = QString("input: Shard ") + kShard1 + " ";
    QVERIFY(with(good.substr(0, good.size() - 2))
                .startsWith(shard + "is " + QString::number(good.size() - 2) +
                            " bytes but its header needs " + QString::number(good.size()) +
                            " bytes: the download is incomplete. Nothing was loaded."));
    QVERIFY(with("").startsWith(shard + "is empty"));
    QVERIFY(with("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
                .startsWith(shard + "is a Git LFS pointer"));
    QVERIFY(with("<!DOCTYPE html><html>").startsWith(shard + "is a web page"));
    QVERIFY(with(good + "tail").startsWith(shard + "has 4 bytes after its last tensor"));
    QCOMPARE(with(good), "no error");
}

void CheckpointTest::refusesSwappedShards() {
    const TinyFolder folder;
    fs::rename(folder / kShard0, folder / "x");
    fs::rename(folder / kShard1, folder / kShard0);
    fs::rename(folder / "x", folder / kShard1);
    LONGVIEW_VERIFY_ERROR(
        folder.open(),
        ({"input: Shard model-00000-of-00003.safetensors holds ",
          "which the index places in model-00001-of-00003.safetensors: files were swapped"}));
}

void CheckpointTest::refusesShardsOfAnotherModel() {
    const TinyFolder folder;
    const QTemporaryDir other;
    llm::ModelConfig config = test::tiny_config(2);
    config.text.intermediate_size = 40;
    test::make_tiny_checkpoint(other.path().toStdString(), config, 1, 3);
    fs::copy_file(folder / "config.json", fs::path(other.path().toStdString()) / "config.json",
                  fs::copy_options::overwrite_existing);
    LONGVIEW_VERIFY_ERROR(Checkpoint::open(other.path().toStdString()),
                          ({"input: Shard model-0000",
                            "has shape [40, 64], but config.json asks for "
                            "[48, 64]."}));
}

void CheckpointTest::refusesTensorsThatAreNotInTheirShard() {
    const TinyFolder folder;
    // Same length, so that the header stays well formed.
    replace_in_file(folder / kShard2, "\"image_newline\"", "\"image_newlinf\"");
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"input: Shard model-00002-of-00003.safetensors holds "
                                           "\"image_newlinf\", which the index does not name"}));
    const TinyFolder moved;
    replace_in_file(moved / kIndex, "\"image_newline\": \"model-00002",
                    "\"image_newline\": \"model-00001");
    LONGVIEW_VERIFY_ERROR(moved.open(), ({"holds \"image_newline\", which the index places in "
                                          "model-00001-of-00003.safetensors"}));
    // An index that names a tensor which no shard has: a shard without its last tensor.
    const TinyFolder lacking;
    const std::string file = contents(lacking / kShard2);
    auto tensors = llm::read_safetensors_header(std::as_bytes(std::span(file)), "x");
    std::vector<test::FakeTensor> kept;
    for (const llm::StoredTensor& tensor : tensors) {
        kept.push_back(
            {tensor.name, "BF16", {tensor.shape.begin(), tensor.shape.begin() + tensor.rank}});
    }
    const std::string name = kept.back().name;
    kept.pop_back();
    test::write_file(lacking / kShard2,
                     test::safetensors_prefix(kept) + std::string(test::data_bytes(kept), '\0'));
    LONGVIEW_VERIFY_ERROR(lacking.open(),
                          ({"input: Shard model-00002-of-00003.safetensors lacks \"" +
                                QString::fromStdString(name) + "\"",
                            "(1 tensors are missing from their shards)"}));
}

void CheckpointTest::refusesMissingAndUnknownTensors() {
    const TinyFolder folder;
    replace_in_file(folder / kIndex, "\"image_newline\"", "\"image_newlinf\"");
    LONGVIEW_VERIFY_ERROR(
        folder.open(),
        ({"input: ", "model.safetensors.index.json: 1 of the ",
          "tensors that config.json asks for are missing, the first is \"image_newline\"."}));
    const TinyFolder extra;
    replace_in_file(extra / kIndex, "\"image_newline\"",
                    "\"vision_tower.post_layernorm\": \"a\", \"image_newline\"");
    LONGVIEW_VERIFY_ERROR(extra.open(),
                          ({"model.safetensors.index.json: 1 tensors are not part of a model with "
                            "this config.json, the first is \"vision_tower.post_layernorm\"."}));
}

void CheckpointTest::recognisesOtherLayouts() {
    const TinyFolder folder;
    test::write_file(folder / kIndex, R"({"weight_map": {"model.embed_tokens.weight": "a"}})");
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"are missing",
                                           "The names are those of a converted or "
                                           "text-only checkpoint"}));
}

void CheckpointTest::refusesUnsafeIndexes_data() {
    QTest::addColumn<QByteArray>("index");
    QTest::addColumn<QString>("cause");
    const auto file = [](const char* name, const char* file_name) {
        QTest::newRow(name) << QByteArray(R"({"weight_map": {"a.b": )") + file_name + "}}"
                            << QString("weight_map places \"a.b\" in");
    };
    file("parent", "\"../model.safetensors\"");
    file("absolute", "\"/etc/passwd\"");
    file("folder", "\"sub/model.safetensors\"");
    file("dot", "\".\"");
    file("dot dot", "\"..\"");
    file("empty", "\"\"");
    file("NUL", "\"a\\u0000b\"");
    file("space", "\"a b\"");
    file("not ASCII", "\"\xc3\xa9\"");
    file("number", "3");
    file("object", "{}");
    const QByteArray long_name = '"' + QByteArray("x").repeated(129) + '"';
    file("long", long_name.constData());
    QTest::newRow("no map") << QByteArray("{}") << "weight_map is missing";
    QTest::newRow("list") << QByteArray("[]") << "the file is a list of 0; an object is expected";
    QTest::newRow("map is a list") << QByteArray(R"({"weight_map": []})")
                                   << "weight_map is a list of 0; an object is expected";
    QTest::newRow("empty map") << QByteArray(R"({"weight_map": {}})")
                               << "are missing, the first is";
    QTest::newRow("repeated") << QByteArray(R"({"weight_map": {"a": "x", "a": "y"}})")
                              << "the key \"a\" appears twice";
    QTest::newRow("truncated") << QByteArray(R"({"weight_map": {"a": "x")") << "not valid JSON";
    QTest::newRow("empty file") << QByteArray() << "is empty";
    QTest::newRow("LFS") << QByteArray("version https://git-lfs.github.com/spec/v1")
                         << "is a Git LFS pointer";
}

void CheckpointTest::refusesUnsafeIndexes() {
    QFETCH(QByteArray, index);
    QFETCH(QString, cause);
    const TinyFolder folder;
    test::write_file(folder / kIndex, index.toStdString());
    LONGVIEW_VERIFY_ERROR(folder.open(), ({"input: ", kIndex, cause}));
}

void CheckpointTest::reportsHarmlessOddities() {
    const TinyFolder folder;
    replace_in_file(folder / kIndex, "\"total_size\": ", "\"total_size\": 1");
    test::write_file(folder / "old.safetensors", "");
    const std::vector<std::string> problems = folder.open()->summary().problems;
    QCOMPARE(problems.size(), std::size_t{2});
    QVERIFY(QString::fromStdString(problems[0]).contains("metadata.total_size is 1"));
    QCOMPARE(problems[1], "1 .safetensors files are not used, the first is \"old.safetensors\"");
    // Sizes written as floats, or left out, are no oddity.
    const TinyFolder other;
    const auto bytes = QByteArray::number(static_cast<qlonglong>(other.open()->summary().bytes));
    replace_in_file(other / kIndex, bytes.toStdString(), bytes.toStdString() + ".0");
    QVERIFY(other.open()->summary().problems.empty());
    replace_in_file(other / kIndex, "\"total_size\"", "\"something\"");
    QVERIFY(other.open()->summary().problems.empty());
}

void CheckpointTest::fingerprintNamesContentAndNotPackaging() {
    const TinyFolder folder;
    const std::string fingerprint = folder.open()->fingerprint();
    // The same weights in one file fewer.
    const QTemporaryDir two;
    test::make_tiny_checkpoint(two.path().toStdString(), test::tiny_config(2), 1, 2);
    QCOMPARE(Checkpoint::open(two.path().toStdString())->fingerprint(), fingerprint);
    // One configuration value.
    replace_in_file(folder / "config.json", "\"rope_theta\": 10000000.0",
                    "\"rope_theta\": 10000001.0");
    QVERIFY(folder.open()->fingerprint() != fingerprint);
    // One bit in the middle of one tensor.
    const TinyFolder flipped;
    std::string file = contents(flipped / kShard1);
    const auto tensors = llm::read_safetensors_header(std::as_bytes(std::span(file)), "x");
    file[tensors.front().offset + tensors.front().size_bytes / 2] ^= 1;
    test::write_file(flipped / kShard1, file);
    QVERIFY(flipped.open()->fingerprint() != fingerprint);
}

void CheckpointTest::noticesChangedFiles() {
    const TinyFolder folder;
    const auto checkpoint = folder.open();
    checkpoint->check_unchanged();
    const auto later = fs::last_write_time(folder / kShard1) + std::chrono::seconds(5);
    fs::last_write_time(folder / kShard1, later);
    LONGVIEW_VERIFY_ERROR(checkpoint->check_unchanged(),
                          ({"io:", kShard1, "was changed or replaced since it was opened"}));
    const auto reopened = folder.open();
    reopened->check_unchanged();
    fs::copy_file(folder / kShard1, folder / "copy");
    fs::last_write_time(folder / "copy", later);
    fs::rename(folder / "copy", folder / kShard1);
    LONGVIEW_VERIFY_ERROR(reopened->check_unchanged(), ({"io:", "was changed or replaced"}));
    fs::remove(folder / kShard1);
    LONGVIEW_VERIFY_ERROR(reopened->check_unchanged(), ({"io:", kShard1, "can no longer be read"}));
}

void CheckpointTest::truncationUnderTheMappingReadsAsZeros() {
    const QTemporaryDir folder;
    const fs::path path = fs::path(folder.path().toStdString()) / "file";
    constexpr std::size_t kPages = 64;
    test::write_file(path, std::string(kPages * 4096, 'x'));
    const llm::MappedFile mapped(path);
    const llm::MappedFile untouched(path);
    fs::resize_file(path, 4096);
    // Several threads run into the hole at once.
    std::atomic<int> nonzero{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (std::size_t page = 1; page < kPages; ++page) {
                if (mapped.bytes()[page * 4096 + 7] != std::byte{0}) ++nonzero;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    QCOMPARE(nonzero.load(), 0);
    QVERIFY(mapped.bytes()[4095] == std::byte{'x'});
    QVERIFY(mapped.damaged());
    QVERIFY(!untouched.damaged());
    LONGVIEW_VERIFY_ERROR(mapped.check_unchanged(),
                          ({"io:", "had 262144 bytes when it was opened and has 4096 now"}));
    LONGVIEW_VERIFY_ERROR(untouched.check_unchanged(), ({"io:", "had 262144 bytes"}));
}

void CheckpointTest::otherBusErrorsStillEndTheProcess() {
    const QTemporaryDir folder;
    QProcess process;
    process.start(QCoreApplication::applicationFilePath(),
                  {kReadLostPage, folder.filePath(QStringLiteral("file"))});
    QVERIFY(process.waitForFinished());
    // By the signal, or by the report of a sanitizer.
    QVERIFY(process.exitStatus() == QProcess::CrashExit || process.exitCode() != 0);
    QVERIFY2(!process.readAllStandardOutput().contains("survived"), "the read went through");
}

void CheckpointTest::hugeSparseFilesAreRefusedByTheirHeader() {
    const QTemporaryDir folder;
    const fs::path path = fs::path(folder.path().toStdString()) / "file";
    const auto read = [&](const std::string& start, std::uint64_t size) {
        test::write_file(path, start);
        fs::resize_file(path, size);
        const llm::MappedFile mapped(path);
        return llm::read_safetensors_header(mapped.bytes(), "Shard f");
    };
    constexpr std::uint64_t kTerabyte = 1'000'000'000'000;
    LONGVIEW_VERIFY_ERROR(read("", kTerabyte), ({"input: Shard f has no header"}));
    const std::vector<test::FakeTensor> tensor{{"a", "BF16", {2'000'000'000}}};
    const std::string prefix = test::safetensors_prefix(tensor);
    LONGVIEW_VERIFY_ERROR(read(prefix, kTerabyte), ({"input: Shard f has 995999999"}));
    LONGVIEW_VERIFY_ERROR(read(prefix, 3'210'000'000),
                          ({"input: Shard f is 3.21 GB but its header needs 4.00 GB: the download "
                            "is incomplete. Nothing was loaded."}));
    QCOMPARE(read(prefix, prefix.size() + 4'000'000'000).size(), std::size_t{1});
}

void CheckpointTest::refusesToReadMoreThanAsked() {
    const QTemporaryDir folder;
    const fs::path path = fs::path(folder.path().toStdString()) / "file";
    test::write_file(path, "12345");
    QCOMPARE(llm::read_whole_file(path, 5), "12345");
    LONGVIEW_VERIFY_ERROR(llm::read_whole_file(path, 4),
                          ({"input:", "/file has 5 bytes; the limit is 4"}));
    LONGVIEW_VERIFY_ERROR(llm::read_whole_file("/dev/zero", 4), ({"is not a regular file"}));
}

int main(int argc, char** argv) {
    if (argc == 3 && QLatin1String(argv[1]) == QLatin1String(kReadLostPage)) {
        return read_lost_page(argv[2]);
    }
    const QCoreApplication application(argc, argv);
    CheckpointTest checkpoint_test;
    return QTest::qExec(&checkpoint_test, argc, argv);
}

#include "checkpoint_test.moc"

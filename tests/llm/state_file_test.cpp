// Saved states come back bit for bit, or are refused with a reason.
#include "llm/decoder/state_file.h"

#include <QFile>
#include <QTemporaryDir>
#include <QtTest>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/runtime/thread_pool.h"
#include "llm/decoder/decoder.h"
#include "tests/llm/random_model.h"

using namespace longview;
using namespace longview::llm;

class StateFileTest : public QObject {
    Q_OBJECT

    const std::string fingerprint_ = "0123456789abcdef0123456789abcdef";
    ModelConfig config_ = testing::small_config();
    testing::RandomSource source_{config_};
    ThreadPool pool_{2};
    std::unique_ptr<kernels::Backend> backend_ = kernels::make_cpu_backend(pool_);
    WeightStore weights_{*backend_, config_, source_};
    Decoder decoder_{*backend_, config_, weights_};
    QTemporaryDir folder_;

    std::filesystem::path path(const char* name) const {
        return folder_.filePath(name).toStdString();
    }
    std::vector<std::int32_t> ids(std::size_t n) const {
        std::vector<std::int32_t> out(n);
        std::iota(out.begin(), out.end(), 1);
        for (std::int32_t& id : out) id %= 90;
        return out;
    }
    std::vector<float> read(SequenceState& state, std::span<const std::int32_t> text) {
        PrefillInput input;
        input.ids = text;
        const float* logits = decoder_.prefill(state, input).logits;
        return {logits, logits + config_.text.vocab_size};
    }
    SavedState load(const std::filesystem::path& file) {
        return read_state_file(file, fingerprint_, decoder_.new_state().layout(), *backend_);
    }
    /// The message of the refusal; empty when the file was accepted.
    std::string refusal(const std::filesystem::path& file) {
        try {
            load(file);
        } catch (const Error& error) {
            return error.what();
        }
        return {};
    }
    QByteArray bytes(const char* name) const {
        QFile file(folder_.filePath(name));
        return file.open(QIODevice::ReadOnly) ? file.readAll() : QByteArray();
    }
    void write(const char* name, const QByteArray& data) const {
        QFile file(folder_.filePath(name));
        QVERIFY(file.open(QIODevice::WriteOnly));
        QCOMPARE(file.write(data), data.size());
    }

  private slots:
    void savedStateGoesOnBitForBit_data() {
        QTest::addColumn<int>("tokens");
        for (const int n : {1, 64, 255, 256, 257, 700}) QTest::addRow("%d", n) << n;
    }
    void savedStateGoesOnBitForBit() {
        QFETCH(int, tokens);
        SequenceState state = decoder_.new_state();
        read(state, ids(static_cast<std::size_t>(tokens)));
        PositionKeys keys(static_cast<std::size_t>(tokens));
        std::iota(keys.begin(), keys.end(), std::uint64_t{1} << 60);
        write_state_file(path("a.state"), fingerprint_, keys, state);
        SavedState back = load(path("a.state"));
        QCOMPARE(back.keys, keys);
        QCOMPARE(back.state.position(), std::int64_t{tokens});
        QCOMPARE(read(back.state, ids(100)), read(state, ids(100)));
        // Only the file itself is left in the folder.
        QCOMPARE(QDir(folder_.path()).entryList(QDir::Files | QDir::Hidden).size(), 1);
    }

    void everyTruncationIsRefused() {
        SequenceState state = decoder_.new_state();
        read(state, ids(70));
        write_state_file(path("a.state"), fingerprint_, PositionKeys(70), state);
        const QByteArray good = bytes("a.state");
        for (qsizetype n = 0; n < good.size(); n += n < 300 ? 1 : 4099) {
            write("cut.state", good.left(n));
            QVERIFY2(!refusal(path("cut.state")).empty(), qPrintable(QString::number(n)));
        }
        write("cut.state", good + "x");
        QVERIFY(refusal(path("cut.state")).find("cut off or changed") != std::string::npos);
    }

    void everyFlippedBitIsRefused() {
        SequenceState state = decoder_.new_state();
        read(state, ids(70));
        write_state_file(path("a.state"), fingerprint_, PositionKeys(70), state);
        const QByteArray good = bytes("a.state");
        int tried = 0;
        for (qsizetype at = 0; at < good.size(); at += at < 128 ? 1 : 977) {
            QByteArray bad = good;
            bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
            write("bad.state", bad);
            QVERIFY2(!refusal(path("bad.state")).empty(), qPrintable(QString::number(at)));
            ++tried;
        }
        QVERIFY(tried > 150);
    }

    void foreignStatesAreRefusedByName() {
        SequenceState state = decoder_.new_state();
        read(state, ids(10));
        write_state_file(path("a.state"), "ffffffffffffffffffffffffffffffff", PositionKeys(10),
                         state);
        QVERIFY(refusal(path("a.state")).find("another model") != std::string::npos);
        write("text.state", QByteArray(4000, 'x'));
        QVERIFY(refusal(path("text.state")).find("is not a saved state") != std::string::npos);
        QVERIFY(refusal(path("missing.state")).find("cannot be opened") != std::string::npos);
        QVERIFY(refusal(folder_.path().toStdString()).find("not a regular file") !=
                std::string::npos);
    }

    void otherLayoutsAreRefused() {
        StateLayout other = decoder_.new_state().layout();
        other.page_tokens = 128;
        SequenceState state(*backend_, other);
        state.prepare(3);
        state.advance(3);
        write_state_file(path("a.state"), fingerprint_, PositionKeys(3), state);
        QVERIFY(refusal(path("a.state")).find("other settings") != std::string::npos);
    }

    void aFailedWriteKeepsTheOldFile() {
        SequenceState state = decoder_.new_state();
        read(state, ids(10));
        bool refused = false;
        try {
            write_state_file(path("no/such/folder.state"), fingerprint_, PositionKeys(10), state);
        } catch (const Error& error) {
            refused = error.category() == Category::kIo;
        }
        QVERIFY(refused);
    }
};

QTEST_GUILESS_MAIN(StateFileTest)
#include "state_file_test.moc"

// Properties of the decoder on a small random model: what may not change the result does not.
#include "llm/decoder/decoder.h"

#include <QtTest>
#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels/runtime/cancel.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/llm/random_model.h"

using namespace longview;
using namespace longview::llm;

namespace {

constexpr int kVocab = 97;

struct Setup {
    explicit Setup(int threads = 2, DecoderOptions options = {})
        : pool(threads),
          backend(kernels::make_cpu_backend(pool)),
          weights(*backend, config, source),
          decoder(*backend, config, weights, std::move(options)) {}

    std::vector<float> read(SequenceState& state, std::span<const std::int32_t> ids,
                            std::vector<std::int64_t> cuts = {}) {
        PrefillInput input;
        input.ids = ids;
        input.cuts = std::move(cuts);
        const float* logits = decoder.prefill(state, input).logits;
        return {logits, logits + kVocab};
    }
    std::vector<float> step(SequenceState& state, std::int32_t id) {
        state.prepare(1);
        const float* logits = decoder.step(state, id);
        return {logits, logits + kVocab};
    }

    ModelConfig config = testing::small_config();
    testing::RandomSource source{config};
    ThreadPool pool;
    std::unique_ptr<kernels::Backend> backend;
    WeightStore weights;
    Decoder decoder;
};

std::vector<std::int32_t> random_ids(std::size_t count, std::uint32_t seed = 3) {
    std::mt19937 random(seed);
    std::vector<std::int32_t> ids(count);
    for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % 96);
    return ids;
}

std::vector<std::byte> state_bytes(const SequenceState& state) {
    const StateLayout& layout = state.layout();
    const auto* lightning = static_cast<const std::byte*>(state.lightning_data());
    std::vector<std::byte> out(lightning, lightning + layout.lightning_bytes());
    for (int i = 0; i < layout.softmax_layers; ++i) {
        const kernels::KvView kv = state.kv(i);
        for (std::int64_t position = 0; position < state.position(); ++position) {
            const auto* page = static_cast<const std::byte*>(kv.pages[position / kv.page_tokens]) +
                               kv.layer_offset_bytes;
            const std::int64_t row_bytes = kv.head_dim * 4;
            for (std::int64_t h = 0; h < 2 * kv.kv_heads; ++h) {
                const auto* row =
                    page + (h * kv.page_tokens + position % kv.page_tokens) * row_bytes;
                out.insert(out.end(), row, row + row_bytes);
            }
        }
    }
    return out;
}

/// Largest difference; NaN anywhere gives a value that fails every bound.
double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) return HUGE_VAL;
    double most = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(static_cast<double>(a[i]) - b[i]);
        if (!(d <= most)) most = std::isnan(d) ? HUGE_VAL : d;
    }
    return most;
}

// Two orders of summation of the same fp32 numbers through six layers of this model: rounding of
// 2^-24 a step, some hundred steps, amplified by the residual factors. Logits are of order 1.
constexpr double kReorderBound = 2e-4;

}  // namespace

class DecoderTest : public QObject {
    Q_OBJECT

  private slots:
    void comparatorFailsOnNan() {
        QVERIFY(!(max_difference({NAN}, {1.0F}) <= 1e30));
        QVERIFY(!(max_difference({1.0F, NAN, 1.0F}, {1.0F, 1.0F, 1.0F}) <= 1e30));
    }

    void chunkSizeDoesNotChangeABit_data() {
        QTest::addColumn<int>("chunk");
        QTest::addColumn<int>("superChunk");
        QTest::addColumn<int>("threads");
        for (const int chunk : {1, 63, 64, 65, 100, 512})
            for (const int super : {64, 128, 100000})
                QTest::addRow("%d/%d", chunk, super) << chunk << super << 2;
        QTest::addRow("one thread") << 128 << 100000 << 1;
        QTest::addRow("three threads") << 128 << 100000 << 3;
    }
    void chunkSizeDoesNotChangeABit() {
        QFETCH(int, chunk);
        QFETCH(int, superChunk);
        QFETCH(int, threads);
        const std::vector<std::int32_t> ids = random_ids(331);
        Setup whole(2, {.chunk_tokens = 100000});
        SequenceState expected_state = whole.decoder.new_state();
        const std::vector<float> expected = whole.read(expected_state, ids);
        Setup cut(threads, {.chunk_tokens = chunk, .super_chunk_tokens = superChunk});
        SequenceState state = cut.decoder.new_state();
        const std::vector<float> got = cut.read(state, ids);
        QCOMPARE(got, expected);
        QVERIFY(state_bytes(state) == state_bytes(expected_state));
    }

    void anySplitGivesTheSameLogits_data() {
        QTest::addColumn<int>("split");
        for (const int split : {1, 2, 17, 63, 64, 65, 127, 128, 200, 256, 257, 329, 330})
            QTest::addRow("%d", split) << split;
    }
    void anySplitGivesTheSameLogits() {
        QFETCH(int, split);
        const std::vector<std::int32_t> ids = random_ids(331);
        Setup s;
        SequenceState once = s.decoder.new_state();
        const std::vector<float> expected = s.read(once, ids);
        SequenceState twice = s.decoder.new_state();
        s.read(twice, std::span(ids).first(static_cast<std::size_t>(split)));
        const std::vector<float> got =
            s.read(twice, std::span(ids).subspan(static_cast<std::size_t>(split)));
        QVERIFY2(max_difference(got, expected) <= kReorderBound,
                 qPrintable(QString::number(max_difference(got, expected))));
        if (split % kernels::kLightningTile == 0) QCOMPARE(got, expected);
        QCOMPARE(twice.position(), std::int64_t{331});
    }

    void readingOnFromACutIsBitEqual() {
        const std::vector<std::int32_t> ids = random_ids(331);
        Setup s;
        SequenceState once = s.decoder.new_state();
        const std::vector<float> expected = s.read(once, ids, {37, 201});
        SequenceState twice = s.decoder.new_state();
        s.read(twice, std::span(ids).first(201), {37, 201});
        const std::vector<float> got = s.read(twice, std::span(ids).subspan(201));
        QCOMPARE(got, expected);
        QVERIFY(state_bytes(twice) == state_bytes(once));
    }

    void oneTokenAtATimeGivesTheSameLogits() {
        const std::vector<std::int32_t> ids = random_ids(150);
        Setup s;
        SequenceState once = s.decoder.new_state();
        const std::vector<float> expected = s.read(once, ids);
        SequenceState stepped = s.decoder.new_state();
        std::vector<float> got;
        for (const std::int32_t id : ids) got = s.step(stepped, id);
        QVERIFY2(max_difference(got, expected) <= kReorderBound,
                 qPrintable(QString::number(max_difference(got, expected))));
    }

    void logitsDependOnEveryEarlierToken() {
        // A decoder that ignored its state, or a layer, would pass the comparisons above.
        std::vector<std::int32_t> ids = random_ids(40);
        Setup s;
        SequenceState a = s.decoder.new_state();
        const std::vector<float> before = s.read(a, ids);
        ids[0] = (ids[0] + 1) % 96;
        SequenceState b = s.decoder.new_state();
        QVERIFY(max_difference(s.read(b, ids), before) > 1e-4);
    }

    void forksThatDivergeEqualSeparateRuns() {
        const std::vector<std::int32_t> ids = random_ids(300);
        const std::vector<std::int32_t> left = random_ids(70, 11);
        const std::vector<std::int32_t> right = random_ids(90, 12);
        Setup s;
        SequenceState trunk = s.decoder.new_state();
        s.read(trunk, ids);
        SequenceState a = trunk.fork();
        SequenceState b = trunk.fork();
        const std::vector<float> got_left = s.read(a, left);
        const std::vector<float> got_right = s.read(b, right);

        SequenceState alone = s.decoder.new_state();
        s.read(alone, ids);
        SequenceState alone_right = alone.fork();
        QCOMPARE(s.read(alone, left), got_left);
        QVERIFY(state_bytes(alone) == state_bytes(a));
        QCOMPARE(s.read(alone_right, right), got_right);
        // The trunk itself was not touched by its forks.
        QCOMPARE(s.read(trunk, right), got_right);
    }

    void forkCostsNoMemoryUntilWritten() {
        const std::vector<std::int32_t> ids = random_ids(300);
        Setup s;
        SequenceState trunk = s.decoder.new_state();
        s.read(trunk, ids);
        SequenceState fork = trunk.fork();
        QCOMPARE(fork.lightning_data(), trunk.lightning_data());
        s.step(fork, 5);
        QVERIFY(fork.lightning_data() != trunk.lightning_data());
        QCOMPARE(fork.pages()[0], trunk.pages()[0]);  // full pages stay shared
        QVERIFY(fork.pages()[1] != trunk.pages()[1]);
    }

    void checkpointsEqualReadingUpToThere() {
        const std::vector<std::int32_t> ids = random_ids(331);
        Setup s(2, {.chunk_tokens = 64, .super_chunk_tokens = 128});
        SequenceState state = s.decoder.new_state();
        PrefillInput input;
        input.ids = ids;
        input.cuts = {5, 64, 129, 300};
        input.checkpoints = {5, 129, 300};
        const PrefillResult result = s.decoder.prefill(state, input);
        QCOMPARE(result.checkpoints.size(), std::size_t{3});
        for (const SequenceState& checkpoint : result.checkpoints) {
            SequenceState alone = s.decoder.new_state();
            std::vector<std::int64_t> cuts = input.cuts;
            std::erase_if(cuts, [&](std::int64_t cut) { return cut > checkpoint.position(); });
            s.read(alone, std::span(ids).first(static_cast<std::size_t>(checkpoint.position())),
                   cuts);
            QVERIFY(state_bytes(checkpoint) == state_bytes(alone));
        }
        // Going on from a checkpoint, after the original went on too, is undisturbed.
        s.read(state, random_ids(80, 4));
        SequenceState branch = result.checkpoints[1].fork();
        const std::vector<float> got = s.read(branch, std::span(ids).subspan(129), {300});
        SequenceState again = s.decoder.new_state();
        QCOMPARE(got, s.read(again, ids, {5, 129, 300}));
    }

    void insertedRowsReplaceEmbeddings() {
        const std::vector<std::int32_t> ids = random_ids(90);
        Setup s(2, {.chunk_tokens = 64, .super_chunk_tokens = 64});
        const int width = s.config.text.hidden_size;
        // Rows equal to the embeddings they replace change nothing.
        std::vector<float> rows(static_cast<std::size_t>(70 * width));
        Matrix m{rows.data(), DType::kF32, 70, width, width};
        s.backend->embed(s.weights.embedding(), std::span(ids).subspan(10, 70), m);
        std::vector<std::int32_t> masked = ids;
        std::fill(masked.begin() + 10, masked.begin() + 80, 96);
        PrefillInput input;
        input.ids = masked;
        input.rows.push_back({10, m});
        SequenceState a = s.decoder.new_state();
        const float* logits = s.decoder.prefill(a, input).logits;
        const std::vector<float> got(logits, logits + kVocab);
        SequenceState b = s.decoder.new_state();
        QCOMPARE(got, s.read(b, ids));
    }

    void cancelLeavesTheStateAsItWas() {
        const std::vector<std::int32_t> ids = random_ids(400);
        Setup s;
        SequenceState state = s.decoder.new_state();
        s.read(state, std::span(ids).first(100));
        const std::vector<std::byte> before = state_bytes(state);
        CancelFlag flag;
        s.backend->set_cancel_flag(&flag);
        PrefillInput input;
        input.ids = std::span(ids).subspan(100);
        int calls = 0;
        input.progress = [&](double) {
            if (++calls == 3) flag.raise();
        };
        bool cancelled = false;
        try {
            s.decoder.prefill(state, input);
        } catch (const Error& error) {
            cancelled = error.category() == Category::kCancelled;
        }
        s.backend->set_cancel_flag(nullptr);
        QVERIFY(cancelled);
        QCOMPARE(state.position(), std::int64_t{100});
        QVERIFY(state_bytes(state) == before);
        SequenceState fresh = s.decoder.new_state();
        s.read(fresh, std::span(ids).first(100));
        QCOMPARE(s.read(state, std::span(ids).subspan(100)),
                 s.read(fresh, std::span(ids).subspan(100)));
    }

    void zeroEmbeddingRowsAreFoundAtLoad() {
        ModelConfig config = testing::small_config();
        testing::RandomSource source(config);
        auto& table = source.values("language_model.model.embed_tokens.weight");
        const std::ptrdiff_t width = config.text.hidden_size;
        std::fill(table.begin() + 7 * width, table.begin() + 8 * width, std::uint16_t{0});
        std::fill(table.begin() + 96 * width, table.end(), std::uint16_t{0});
        ThreadPool pool(1);
        const auto backend = kernels::make_cpu_backend(pool);
        const WeightStore weights(*backend, config, source);
        const std::vector<std::int32_t> found(weights.zero_rows().begin(),
                                              weights.zero_rows().end());
        QCOMPARE(found, (std::vector<std::int32_t>{7, 96}));
    }

    void slopesAreThoseOfTheSpecification() {
        // model-spec 3.3, 64 heads and 80 layers
        const auto near = [](float got, double want) {
            return std::abs(got - want) <= 1e-6 * want;
        };
        QVERIFY(near(lightning_slopes(64, 0, 80)[0], 0.9170132));
        QVERIFY(near(lightning_slopes(64, 0, 80)[63], 0.003906289));
        QVERIFY(near(lightning_slopes(64, 78, 80)[63], 4.94853e-5));
    }
};

QTEST_GUILESS_MAIN(DecoderTest)
#include "decoder_test.moc"

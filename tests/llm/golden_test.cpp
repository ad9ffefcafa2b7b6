// Parity of the whole model with the independent reference: hidden states after every layer,
// lightning states, logits and greedy ids of all golden prompts (goals.md: 2e-3 on the CPU).
#include <QtTest>
#include <cmath>
#include <memory>
#include <vector>

#include "kernels/runtime/thread_pool.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/decoder/decoder.h"
#include "tests/llm/golden.h"
#include "vision/encoder/encoder.h"
#include "vision/image/image.h"

using namespace longview;
using namespace longview::llm;
using namespace longview::testing;

class GoldenTest : public QObject {
    Q_OBJECT

    struct Hidden {
        int layer;
        std::int64_t position;
        std::vector<float> row;
    };

    ThreadPool pool_{2};
    std::unique_ptr<kernels::Backend> backend_;
    std::unique_ptr<Checkpoint> checkpoint_;
    std::unique_ptr<WeightStore> weights_;
    std::unique_ptr<vision::Encoder> encoder_;
    std::unique_ptr<Decoder> decoder_;
    std::vector<std::int64_t> wanted_;
    std::vector<Hidden> seen_;

    /// Absolute and relative bound: fp32 sums of the reference and ours differ in order.
    static bool close(double got, double want, double bound) {
        return std::abs(got - want) <= bound * std::max(1.0, std::abs(want));
    }

  private slots:
    void initTestCase() {
        backend_ = kernels::make_cpu_backend(pool_);
        checkpoint_ = Checkpoint::open(LONGVIEW_DEMO_MODEL);
        weights_ = std::make_unique<WeightStore>(*backend_, checkpoint_->config(), *checkpoint_);
        encoder_ =
            std::make_unique<vision::Encoder>(*backend_, checkpoint_->config().vision,
                                              checkpoint_->config().preprocess, *checkpoint_);
        DecoderOptions options;
        options.layer_tap = [this](int layer, std::int64_t first, ConstMatrix rows) {
            for (const std::int64_t position : wanted_) {
                if (position < first || position >= first + rows.rows) continue;
                const float* row = rows.f32(position - first);
                seen_.push_back({layer, position, std::vector<float>(row, row + rows.cols)});
            }
        };
        decoder_ = std::make_unique<Decoder>(*backend_, checkpoint_->config(), *weights_, options);
    }

    void everyGoldenPromptIsThere() { QCOMPARE(golden_names().size(), 9); }

    void agreesWithTheReference_data() {
        QTest::addColumn<QString>("name");
        for (const QString& name : golden_names_to_run()) QTest::newRow(qPrintable(name)) << name;
    }
    void agreesWithTheReference() {
        QFETCH(QString, name);
        const nlohmann::json golden = golden_json(name);
        const auto ids = golden["input_ids"].get<std::vector<std::int32_t>>();
        const ModelConfig& config = checkpoint_->config();
        const std::int64_t width = config.text.hidden_size;

        PrefillInput input;
        input.ids = ids;
        std::vector<Buffer> features;
        for (const auto& entry : golden["images"]) {
            const auto path = (golden_folder() + "/" + name + "/").toStdString() +
                              entry["file"].get<std::string>();
            const vision::TiledImage tiles =
                vision::cut_tiles(vision::load_image(path), config.preprocess);
            QCOMPARE(tiles.plan.tokens, entry["tokens"].get<std::int64_t>());
            Buffer& rows = features.emplace_back(
                backend_->allocate(static_cast<std::size_t>(tiles.plan.tokens * width) * 4));
            const Matrix m{rows.data(), DType::kF32, tiles.plan.tokens, width, width};
            encoder_->encode(tiles, m);
            input.rows.push_back({entry["first_token"].get<std::int64_t>(), m});
        }
        wanted_ = golden["layers"][0]["positions"].get<std::vector<std::int64_t>>();
        seen_.clear();
        SequenceState state = decoder_->new_state();
        const PrefillResult result = decoder_->prefill(state, input);

        double worst_hidden = 0.0;
        for (const Hidden& h : seen_) {
            const auto& layer = golden["layers"][static_cast<std::size_t>(h.layer)];
            const auto at = static_cast<std::size_t>(
                std::find(wanted_.begin(), wanted_.end(), h.position) - wanted_.begin());
            const auto want = layer["hidden_first_16"][at].get<std::vector<double>>();
            for (std::size_t i = 0; i < want.size(); ++i) {
                QVERIFY2(close(h.row[i], want[i], 2e-3),
                         qPrintable(QString("layer %1, position %2, dim %3: %4, expected %5")
                                        .arg(h.layer)
                                        .arg(h.position)
                                        .arg(i)
                                        .arg(h.row[i])
                                        .arg(want[i])));
                worst_hidden = std::max(worst_hidden, std::abs(h.row[i] - want[i]));
            }
            if (h.position == wanted_.back()) {
                double sum = 0.0;
                for (const float v : h.row) sum += std::abs(v);
                QVERIFY(close(sum / static_cast<double>(width), layer["abs_mean_last"], 1e-4));
            }
        }
        QCOMPARE(seen_.size(), golden["layers"].size() * wanted_.size());

        int lightning = 0;
        for (const auto& want : golden["lightning_state_abs_mean"]) {
            if (want.is_null()) continue;
            const float* s = state.lightning(lightning++);
            const auto count =
                static_cast<std::size_t>(config.text.num_attention_heads) *
                static_cast<std::size_t>(config.text.head_dim * config.text.head_dim);
            double sum = 0.0;
            for (std::size_t i = 0; i < count; ++i) sum += std::abs(s[i]);
            const double mean = sum / static_cast<double>(count);
            QVERIFY2(std::abs(mean - want.get<double>()) <= 1e-4 * want.get<double>(),
                     qPrintable(QString("%1, expected %2").arg(mean).arg(want.get<double>())));
        }

        const std::vector<float> want = golden_logits(name);
        QCOMPARE(static_cast<int>(want.size()), config.text.vocab_size);
        double worst = 0.0;
        for (std::size_t i = 0; i < want.size(); ++i) {
            const double d = std::abs(static_cast<double>(result.logits[i]) - want[i]);
            QVERIFY2(d <= 2e-3, qPrintable(QString("logit %1: %2, expected %3")
                                               .arg(i)
                                               .arg(result.logits[i])
                                               .arg(want[i])));
            worst = std::max(worst, d);
        }
        qInfo("%s: %zu tokens, largest difference of logits %.2g, of hidden values %.2g",
              qPrintable(name), ids.size(), worst, worst_hidden);

        const auto greedy = golden["greedy_ids"].get<std::vector<std::int32_t>>();
        const float* logits = result.logits;
        state.prepare(static_cast<std::int64_t>(greedy.size()));
        for (const std::int32_t expected : greedy) {
            const auto best = static_cast<std::int32_t>(
                std::max_element(logits, logits + config.text.vocab_size) - logits);
            QCOMPARE(best, expected);
            logits = decoder_->step(state, best);
        }
    }
};

QTEST_GUILESS_MAIN(GoldenTest)
#include "golden_test.moc"

// The choice of the next token: penalties, filters, draw.
#include <QtTest>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/cpu/ops.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::int64_t vocab, float scale, std::uint64_t seed) {
    std::vector<float> logits;
    Random random(seed);
    for (std::int64_t i = 0; i < vocab; ++i) logits.push_back(scale * random.next());
    return logits;
}

std::int32_t draw(const SampleParams& p) {
    ThreadPool pool(1);
    cpu::Context context(pool);
    return cpu::sample(context, p);
}

SampleParams params(const std::vector<float>& logits, float temperature) {
    SampleParams p;
    p.logits = logits.data();
    p.vocab = static_cast<std::int64_t>(logits.size());
    p.temperature = temperature;
    return p;
}

// Probabilities after the filters, by the definition: sort, cut, renormalise at each step.
std::vector<double> distribution(const SampleParams& p) {
    const auto vocab = static_cast<std::size_t>(p.vocab);
    std::vector<std::size_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return p.logits[a] > p.logits[b]; });
    std::vector<double> sorted;
    for (const std::size_t id : order)
        sorted.push_back(
            std::exp((static_cast<double>(p.logits[id]) - p.logits[order[0]]) / p.temperature));
    if (p.top_k > 0 && static_cast<std::size_t>(p.top_k) < sorted.size())
        sorted.resize(static_cast<std::size_t>(p.top_k));
    if (p.top_p < 1.0F) {
        const double total = std::accumulate(sorted.begin(), sorted.end(), 0.0);
        double sum = 0.0;
        std::size_t kept = 0;
        while (kept < sorted.size() && (kept == 0 || sum < p.top_p * total)) sum += sorted[kept++];
        sorted.resize(kept);
    }
    while (sorted.back() < p.min_p * sorted.front()) sorted.pop_back();
    const double total = std::accumulate(sorted.begin(), sorted.end(), 0.0);
    std::vector<double> result(vocab, 0.0);
    for (std::size_t i = 0; i < sorted.size(); ++i) result[order[i]] = sorted[i] / total;
    return result;
}

}  // namespace

class SamplingTest : public QObject {
    Q_OBJECT

  private slots:
    void temperatureZeroTakesTheLargestAndTheLowestIdOnATie() {
        QCOMPARE(draw(params({1.0F, 3.0F, 2.0F}, 0.0F)), 1);
        QCOMPARE(draw(params({3.0F, 1.0F, 3.0F}, 0.0F)), 0);
        QCOMPARE(draw(params({-5.0F}, 0.0F)), 0);
        QCOMPARE(draw(params({-kInfinity, -1e30F, -kInfinity}, 0.0F)), 1);
        // So small that its reciprocal is no float.
        QCOMPARE(draw(params({1.0F, 1.0F, 1.0F + 0x1p-23F}, 1e-45F)), 2);
    }

    void suppressedIdsNeverCome() {
        const std::vector<float> logits = {9.0F, 8.0F, 7.0F, 6.0F};
        const std::uint8_t suppressed[] = {1, 0, 1, 0};
        SampleParams p = params(logits, 0.0F);
        p.suppressed = suppressed;
        QCOMPARE(draw(p), 1);
        p.temperature = 5.0F;
        std::set<std::int32_t> seen;
        for (p.step = 0; p.step < 200; ++p.step) seen.insert(draw(p));
        QCOMPARE(seen, (std::set<std::int32_t>{1, 3}));
    }

    void suppressedNanDoesNoHarm() {
        const std::vector<float> logits = {NAN, 1.0F, kInfinity};
        const std::uint8_t suppressed[] = {1, 0, 1};
        SampleParams p = params(logits, 0.0F);
        p.suppressed = suppressed;
        QCOMPARE(draw(p), 1);
    }

    void penaltiesFollowTheirFormulas() {
        const std::int32_t history[] = {2, 0, 2, 3};
        SampleParams p = params({}, 0.0F);
        p.history = history;
        p.history_length = 4;
        // Repetition: positive logits are divided, negative multiplied, however often they came.
        const std::vector<float> positive = {4.0F, 2.1F, 4.1F, 0.0F};
        p.logits = positive.data();
        p.vocab = 4;
        p.repetition_penalty = 2.0F;
        QCOMPARE(draw(p), 1);  // 2.0 2.1 2.05 0.0
        p.repetition_penalty = 1.9F;
        QCOMPARE(draw(p), 2);  // 2.105 2.1 2.158 0.0
        const std::vector<float> negative = {-1.0F, -1.9F, -1.1F, -1.5F};
        p.logits = negative.data();
        p.repetition_penalty = 2.0F;
        QCOMPARE(draw(p), 1);  // -2.0 -1.9 -2.2 -3.0
        // Presence: once; frequency: as often as it came.
        p.repetition_penalty = 1.0F;
        p.logits = positive.data();
        p.presence_penalty = 1.95F;
        QCOMPARE(draw(p), 2);  // 2.05 2.1 2.15 -1.95
        p.presence_penalty = 2.05F;
        QCOMPARE(draw(p), 1);  // 1.95 2.1 2.05 -2.05
        p.presence_penalty = 0.0F;
        p.frequency_penalty = 0.5F;
        QCOMPARE(draw(p), 0);  // 3.5 2.1 3.1 -0.5
        p.frequency_penalty = -0.5F;
        QCOMPARE(draw(p), 2);  // 4.5 2.1 5.1 0.5
    }

    void filtersKeepTheDefinedSetWithItsProbabilities_data() {
        QTest::addColumn<int>("top_k");
        QTest::addColumn<float>("top_p");
        QTest::addColumn<float>("min_p");
        QTest::addColumn<float>("temperature");
        QTest::newRow("none") << 0 << 1.0F << 0.0F << 0.7F;
        QTest::newRow("top_k 1") << 1 << 1.0F << 0.0F << 1.0F;
        QTest::newRow("top_k 5") << 5 << 1.0F << 0.0F << 1.0F;
        QTest::newRow("top_k beyond the vocabulary") << 1000 << 1.0F << 0.0F << 1.0F;
        QTest::newRow("top_p 0") << 0 << 0.0F << 0.0F << 1.0F;
        QTest::newRow("top_p 0.5") << 0 << 0.5F << 0.0F << 1.0F;
        QTest::newRow("top_p 0.999") << 0 << 0.999F << 0.0F << 1.0F;
        QTest::newRow("min_p 0.3") << 0 << 1.0F << 0.3F << 1.0F;
        QTest::newRow("min_p 1") << 0 << 1.0F << 1.0F << 1.0F;
        QTest::newRow("top_k then top_p") << 10 << 0.6F << 0.0F << 1.3F;
        QTest::newRow("all three") << 20 << 0.9F << 0.2F << 2.0F;
    }
    void filtersKeepTheDefinedSetWithItsProbabilities() {
        QFETCH(int, top_k);
        QFETCH(float, top_p);
        QFETCH(float, min_p);
        QFETCH(float, temperature);
        const std::vector<float> logits = random_logits(40, 3.0F, 5);
        SampleParams p = params(logits, temperature);
        p.top_k = top_k;
        p.top_p = top_p;
        p.min_p = min_p;
        p.seed = 99;
        const std::vector<double> expected = distribution(p);
        constexpr int kDraws = 20000;
        std::vector<int> counts(logits.size(), 0);
        ThreadPool pool(1);
        cpu::Context context(pool);
        for (p.step = 0; p.step < kDraws; ++p.step)
            ++counts[static_cast<std::size_t>(cpu::sample(context, p))];
        for (std::size_t i = 0; i < counts.size(); ++i) {
            const double q = expected[i];
            if (q == 0.0) QCOMPARE(counts[i], 0);
            // Six standard deviations: 40 ids in 11 cases pass by chance once in 10^6 seeds.
            const double deviation = std::sqrt(kDraws * q * (1.0 - q));
            QVERIFY(std::abs(counts[i] - kDraws * q) <= 6.0 * deviation + 1.0);
        }
    }

    void largeVocabularyKeepsTheDefinedSet_data() {
        QTest::addColumn<int>("top_k");
        QTest::addColumn<float>("top_p");
        QTest::addColumn<float>("min_p");
        QTest::newRow("top_k 50") << 50 << 1.0F << 0.0F;
        QTest::newRow("top_k 5000") << 5000 << 1.0F << 0.0F;
        QTest::newRow("top_k 40, top_p 0.9") << 40 << 0.9F << 0.0F;
        QTest::newRow("top_p 0.01") << 0 << 0.01F << 0.0F;
        QTest::newRow("top_p 0.97") << 0 << 0.97F << 0.0F;
        QTest::newRow("min_p 0.99") << 0 << 1.0F << 0.99F;
    }
    void largeVocabularyKeepsTheDefinedSet() {
        QFETCH(int, top_k);
        QFETCH(float, top_p);
        QFETCH(float, min_p);
        // Many equal logits: ties must be cut at the lower ids.
        std::vector<float> logits = random_logits(200064, 6.0F, 6);
        for (float& logit : logits) logit = std::round(logit * 512.0F) / 512.0F;
        SampleParams p = params(logits, 1.0F);
        p.top_k = top_k;
        p.top_p = top_p;
        p.min_p = min_p;
        const std::vector<double> expected = distribution(p);
        ThreadPool pool(1);
        cpu::Context context(pool);
        std::set<std::int32_t> seen;
        for (p.step = 0; p.step < 30; ++p.step) {
            const std::int32_t id = cpu::sample(context, p);
            QVERIFY(expected[static_cast<std::size_t>(id)] > 0.0);
            seen.insert(id);
        }
        QVERIFY(seen.size() > 10);
    }

    void theDrawDoesNotDependOnHowTheSetWasFound() {
        const std::vector<float> logits = random_logits(3000, 4.0F, 7);
        SampleParams open = params(logits, 1.0F);
        SampleParams filtered = open;
        filtered.min_p = 1e-30F;  // keeps all, by way of the ranking
        ThreadPool pool(1);
        cpu::Context context(pool);
        for (std::uint64_t step = 0; step < 300; ++step) {
            open.step = filtered.step = step;
            QCOMPARE(cpu::sample(context, open), cpu::sample(context, filtered));
        }
    }

    void seedAndStepDetermineTheDraw() {
        const std::vector<float> logits = random_logits(500, 1.0F, 8);
        SampleParams p = params(logits, 1.0F);
        const auto sequence = [&](std::uint64_t seed, int threads) {
            p.seed = seed;
            ThreadPool pool(threads);
            cpu::Context context(pool);
            std::vector<std::int32_t> ids;
            for (p.step = 0; p.step < 50; ++p.step) ids.push_back(cpu::sample(context, p));
            return ids;
        };
        const auto first = sequence(1, 1);
        QCOMPARE(sequence(1, 1), first);
        QCOMPARE(sequence(1, 2), first);
        QVERIFY(sequence(2, 1) != first);
        QVERIFY(std::set<std::int32_t>(first.begin(), first.end()).size() > 20);
    }

    void brokenLogitsAreReported() {
        LONGVIEW_THROWS(draw(params({1.0F, NAN, 2.0F}, 0.0F)), Category::kDevice);
        LONGVIEW_THROWS(draw(params({1.0F, 2.0F, NAN}, 1.0F)), Category::kDevice);
        LONGVIEW_THROWS(draw(params({NAN}, 1.0F)), Category::kDevice);
        LONGVIEW_THROWS(draw(params({1.0F, kInfinity}, 0.0F)), Category::kDevice);
    }

    void nothingToChooseIsReported() {
        LONGVIEW_THROWS(draw(params({-kInfinity, -kInfinity}, 0.0F)), Category::kBug);
        LONGVIEW_THROWS(draw(params({}, 0.0F)), Category::kBug);
        const std::vector<float> logits = {1.0F, 2.0F};
        const std::uint8_t suppressed[] = {1, 1};
        SampleParams p = params(logits, 1.0F);
        p.suppressed = suppressed;
        LONGVIEW_THROWS(draw(p), Category::kBug);
    }

    void impossibleParametersAreRefused() {
        const std::vector<float> logits = {1.0F, 2.0F};
        const SampleParams good = params(logits, 1.0F);
        const auto refuses = [&](auto change) {
            SampleParams p = good;
            change(p);
            LONGVIEW_THROWS(draw(p), Category::kBug);
        };
        QCOMPARE(draw(good), draw(good));
        refuses([](SampleParams& p) { p.temperature = -1.0F; });
        refuses([](SampleParams& p) { p.temperature = NAN; });
        refuses([](SampleParams& p) { p.top_k = -1; });
        refuses([](SampleParams& p) { p.top_p = NAN; });
        refuses([](SampleParams& p) { p.min_p = 1.5F; });
        refuses([](SampleParams& p) { p.repetition_penalty = 0.0F; });
        refuses([](SampleParams& p) { p.presence_penalty = NAN; });
        const std::int32_t foreign = 2;
        refuses([&](SampleParams& p) {
            p.history = &foreign;
            p.history_length = 1;
            p.presence_penalty = 1.0F;
        });
    }
};

LONGVIEW_KERNEL_TEST_MAIN(SamplingTest)
#include "sampling_test.moc"

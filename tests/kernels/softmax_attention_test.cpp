// Softmax attention against softmax(scale q k^T) v in float64.
#include <QTest>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/cancel.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/kv_check.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::testing;

namespace {

struct Problem {
    std::int64_t rows;
    std::int64_t position;
    int heads;
    int kv_heads;
    int head_dim;
    float scale;
    std::vector<float> q;
    KvStore kv;

    Problem(std::int64_t n, std::int64_t start, int q_heads, int key_heads, int dims,
            std::int64_t page_tokens = 16, DType dtype = DType::kF32, float size = 1.0F)
        : rows(n),
          position(start),
          heads(q_heads),
          kv_heads(key_heads),
          head_dim(dims),
          scale(1.0F / std::sqrt(static_cast<float>(dims))),
          // One page more than needed: its NaN must not matter.
          kv(start + n + page_tokens, page_tokens, dtype, key_heads, dims) {
        Numbers numbers(static_cast<std::uint64_t>(n * 7919 + start * 31 + dims));
        q = numbers.many(n * q_heads * dims, 3.0F * size);
        kv.fill(start + n, numbers, size);
    }
};

std::vector<float> run(const Problem& p, const std::vector<std::int64_t>& calls, int threads,
                       bool* intact = nullptr) {
    ThreadPool pool(threads);
    cpu::Context context(pool);
    const std::int64_t width = std::int64_t{p.heads} * p.head_dim;
    GuardedRows q(p.rows, width, p.q);
    GuardedRows out(p.rows, width);
    std::int64_t first = 0;
    for (const std::int64_t count : calls) {
        SoftmaxAttentionParams params;
        params.q = ConstMatrix(q.view()).slice(first, count);
        params.heads = p.heads;
        params.scale = p.scale;
        params.position = p.position + first;
        params.kv = p.kv.view();
        params.out = out.view().slice(first, count);
        cpu::softmax_attention(context, params);
        first += count;
    }
    if (intact != nullptr) *intact = q.intact() && out.intact() && p.kv.intact();
    return out.values();
}

/// Misses against the formula. With A the largest sum of |scale q k| a row meets, a score is off
/// by at most (head_dim + 4) roundings of A, so a weight by that share plus 6 roundings for the
/// power of two; numerator and denominator each add a rounding a key and a few a block.
QString misses_of(const Problem& p, const std::vector<float>& out) {
    std::vector<double> expected, tolerance;
    const int group = p.heads / p.kv_heads;
    for (std::int64_t row = 0; row < p.rows; ++row) {
        for (int head = 0; head < p.heads; ++head) {
            const float* const q = p.q.data() + (row * p.heads + head) * p.head_dim;
            const std::int64_t keys = p.position + row + 1;
            std::vector<double> scores;
            double largest = -std::numeric_limits<double>::infinity();
            double largest_size = 0.0;
            for (std::int64_t t = 0; t < keys; ++t) {
                double sum = 0.0, size = 0.0;
                for (int i = 0; i < p.head_dim; ++i) {
                    const double product =
                        static_cast<double>(p.scale) * q[i] * p.kv.get(t, head / group, i, false);
                    sum += product;
                    size += std::abs(product);
                }
                scores.push_back(sum);
                largest = std::max(largest, sum);
                largest_size = std::max(largest_size, size);
            }
            std::vector<double> mean(static_cast<std::size_t>(p.head_dim)), size = mean;
            double total = 0.0;
            for (std::int64_t t = 0; t < keys; ++t) {
                const double weight = std::exp(scores[static_cast<std::size_t>(t)] - largest);
                total += weight;
                for (int i = 0; i < p.head_dim; ++i) {
                    const double v = p.kv.get(t, head / group, i, true);
                    mean[static_cast<std::size_t>(i)] += weight * v;
                    size[static_cast<std::size_t>(i)] += weight * std::abs(v);
                }
            }
            const double weight_error = (p.head_dim + 4.0) * largest_size + 6.0;
            const double sum_error =
                static_cast<double>(keys) + 8.0 * static_cast<double>(keys / 64 + 2);
            for (std::size_t i = 0; i < mean.size(); ++i) {
                expected.push_back(mean[i] / total);
                tolerance.push_back(size[i] / total * 2.0 * (weight_error + sum_error) * kUnit +
                                    1e-37);
            }
        }
    }
    return misses(out, expected, tolerance);
}

}  // namespace

class SoftmaxAttentionTest : public QObject {
    Q_OBJECT

  private slots:
    void matchesTheFormula_data() {
        QTest::addColumn<int>("rows");
        QTest::addColumn<int>("position");
        QTest::addColumn<int>("heads");
        QTest::addColumn<int>("kv_heads");
        QTest::addColumn<int>("head_dim");
        for (const int n : {1, 2, 5, 7, 13, 63, 64, 65, 97})
            for (const int position : {0, 1, 31, 62, 63, 64, 65})
                QTest::addRow("%d rows at %d", n, position) << n << position << 4 << 2 << 16;
        for (const int dim : {1, 3, 8, 13, 24, 40, 64, 128, 130})
            QTest::addRow("head_dim %d", dim) << 9 << 70 << 2 << 1 << dim;
        QTest::newRow("no grouping") << 130 << 3 << 3 << 3 << 24;
        QTest::newRow("groups of eight") << 30 << 40 << 16 << 2 << 32;
        QTest::newRow("a hundred heads on one") << 3 << 100 << 100 << 1 << 8;
        QTest::newRow("several ranges") << 5 << 2500 << 4 << 2 << 16;
        QTest::newRow("over a range border") << 11 << 1019 << 4 << 2 << 16;
        QTest::newRow("one row at a range border") << 1 << 1024 << 2 << 1 << 16;
        QTest::newRow("one row before it") << 1 << 1023 << 2 << 1 << 16;
    }
    void matchesTheFormula() {
        QFETCH(int, rows);
        QFETCH(int, position);
        QFETCH(int, heads);
        QFETCH(int, kv_heads);
        QFETCH(int, head_dim);
        const Problem p(rows, position, heads, kv_heads, head_dim);
        bool intact = false;
        const std::vector<float> out = run(p, {rows}, 2, &intact);
        QVERIFY(intact);
        const QString miss = misses_of(p, out);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void anyPageSizeAndType_data() {
        QTest::addColumn<int>("page_tokens");
        for (const int tokens : {1, 2, 3, 7, 16, 63, 64, 65, 100, 256})
            QTest::addRow("%d", tokens) << tokens;
    }
    void anyPageSizeAndType() {
        QFETCH(int, page_tokens);
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            for (const int dim : {16, 19}) {
                const Problem p(41, 93, 4, 2, dim, page_tokens, dtype);
                bool intact = false;
                const std::vector<float> out = run(p, {41}, 2, &intact);
                QVERIFY(intact);
                const QString miss = misses_of(p, out);
                QVERIFY2(miss.isEmpty(), qPrintable(miss));
            }
        }
    }

    void largeScoresDoNotOverflow() {
        const Problem p(70, 10, 2, 1, 16, 16, DType::kF32, 60.0F);  // scores up to some 40 000
        const QString miss = misses_of(p, run(p, {70}, 1));
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void equalScoresGiveTheMean() {
        Problem p(3, 2047, 2, 2, 8);
        std::fill(p.q.begin(), p.q.end(), 0.0F);
        for (int t = 0; t < 2050; ++t)
            for (int h = 0; h < 2; ++h)
                for (int i = 0; i < 8; ++i) p.kv.set(t, h, i, true, static_cast<float>(t % 2));
        const std::vector<float> out = run(p, {3}, 2);
        for (std::size_t row = 0; row < 3; ++row) {
            const double keys = 2048.0 + static_cast<double>(row);
            const double mean = std::floor(keys / 2.0) / keys;
            for (std::size_t i = 0; i < 16; ++i)
                QVERIFY(std::abs(static_cast<double>(out[row * 16 + i]) - mean) <= 1e-6);
        }
    }

    void anySplitIsBitEqual_data() {
        QTest::addColumn<int>("position");
        QTest::addColumn<QList<int>>("calls");
        QTest::newRow("one by one") << 0 << QList<int>(150, 1);
        QTest::newRow("ragged") << 5 << QList<int>{1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 20};
        QTest::newRow("over ranges") << 2000 << QList<int>{1, 49, 50, 0, 48, 2};
    }
    void anySplitIsBitEqual() {
        QFETCH(int, position);
        QFETCH(QList<int>, calls);
        const Problem p(150, position, 6, 2, 24);
        const std::vector<float> whole = run(p, {150}, 1);
        for (const int threads : {1, 2, 5})
            QVERIFY(same_bits(whole, run(p, {calls.begin(), calls.end()}, threads)));
        const QString miss = misses_of(p, whole);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void bitsDoNotDependOnThreads() {
        for (const std::int64_t rows : {1, 3, 200}) {
            const Problem p(rows, 3100, 4, 2, 16, 48);
            const std::vector<float> one = run(p, {rows}, 1);
            for (const int threads : {2, 3, 7}) QVERIFY(same_bits(one, run(p, {rows}, threads)));
        }
    }

    void moreQueriesThanOnePass() {
        const std::int64_t rows = 1200;
        const Problem p(rows, 0, 2, 1, 8);
        const std::vector<float> whole = run(p, {rows}, 2);
        QVERIFY(same_bits(whole, run(p, {1, 1199}, 1)));
        const QString miss = misses_of(p, whole);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void anUnderflowedSumIsTheSameInAnySplit() {
        // Tiny weights times tiny values: the sign of the zero must not depend on masked keys.
        Problem p(64, 0, 1, 1, 8);
        for (int t = 0; t < 64; ++t)
            for (int i = 0; i < 8; ++i) p.kv.set(t, 0, i, true, t % 2 == 0 ? -1e-44F : 1e-45F);
        const std::vector<float> whole = run(p, {64}, 1);
        QVERIFY(same_bits(whole, run(p, std::vector<std::int64_t>(64, 1), 1)));
    }

    void doesNothingForZeroRows() {
        const Problem p(0, 5, 2, 1, 8);
        QVERIFY(run(p, {0}, 2).empty());
    }

    void matchesTheFormulaOnEveryInstructionSet() {
        on_each_instruction_set([](const char* name) {
            for (const DType dtype : {DType::kF32, DType::kBF16}) {
                const Problem p(70, 1000, 4, 2, 21, 16, dtype);
                const std::vector<float> whole = run(p, {70}, 2);
                const QString miss = misses_of(p, whole);
                QVERIFY2(miss.isEmpty(), qPrintable(name + (": " + miss)));
                QVERIFY2(same_bits(whole, run(p, {1, 23, 46}, 1)), name);
            }
        });
    }

    void refusesBrokenShapes() {
        Problem p(2, 0, 3, 2, 8);  // three query heads on two key heads
        try {
            run(p, {2}, 1);
            QFAIL("an uneven group was accepted");
        } catch (const Error& e) {
            QCOMPARE(e.category(), Category::kBug);
        }
    }

    void stopsOnRequest() {
        ThreadPool pool(2);
        CancelFlag flag;
        flag.raise();
        pool.set_cancel_flag(&flag);
        cpu::Context context(pool);
        Problem p(4, 0, 2, 1, 8);
        std::vector<float> out(4 * 16);
        SoftmaxAttentionParams params;
        params.q = {p.q.data(), DType::kF32, 4, 16, 16};
        params.heads = 2;
        params.scale = 1.0F;
        params.kv = p.kv.view();
        params.out = {out.data(), DType::kF32, 4, 16, 16};
        try {
            cpu::softmax_attention(context, params);
            QFAIL("a raised flag was ignored");
        } catch (const Error& e) {
            QCOMPARE(e.category(), Category::kCancelled);
        }
    }
};

QTEST_GUILESS_MAIN(SoftmaxAttentionTest)
#include "softmax_attention_test.moc"

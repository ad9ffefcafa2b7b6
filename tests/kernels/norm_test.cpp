// Norms of rows against float64 formulas.
#include <QtTest>
#include <cmath>

#include "kernels/cpu/ops.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::test;

class NormTest : public QObject {
    Q_OBJECT

    static Rows run(const Rows& x, const Rows& gain, const Rows* bias, bool layer, float eps,
                    int threads) {
        Rows out(x.rows(), x.cols());
        ThreadPool pool(threads);
        cpu::Context context(pool);
        if (layer) {
            cpu::layer_norm(context, x.view(), gain.row(0),
                            bias == nullptr ? nullptr : bias->row(0), eps, out.matrix());
        } else {
            cpu::rms_norm(context, x.view(), gain.row(0), eps, out.matrix());
        }
        return out;
    }

  private slots:
    void matchesFormula_data() {
        QTest::addColumn<int>("rows");
        QTest::addColumn<int>("cols");
        QTest::addColumn<double>("scale");
        QTest::addColumn<double>("offset");
        // Sums run in steps of 1, 4, 8, 16 lanes and four accumulators.
        for (const int cols : {1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 256, 6143})
            QTest::addRow("%d columns", cols) << 3 << cols << 1.0 << 0.0;
        QTest::newRow("no rows") << 0 << 8 << 1.0 << 0.0;
        QTest::newRow("many rows") << 2000 << 40 << 1.0 << 0.0;
        QTest::newRow("large values") << 2 << 100 << 1e15 << 0.0;
        QTest::newRow("tiny values") << 2 << 100 << 1e-18 << 0.0;
        QTest::newRow("far from zero") << 2 << 100 << 1.0 << 100.0;
    }
    void matchesFormula() {
        QFETCH(int, rows);
        QFETCH(int, cols);
        QFETCH(double, scale);
        QFETCH(double, offset);
        Rows x = Rows::random(rows, cols, 1);
        const Rows gain = Rows::random(1, cols, 2), bias = Rows::random(1, cols, 3);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < cols; ++c)
                x.at(r, c) = static_cast<float>(x.at(r, c) * scale + offset);
        constexpr float kEps = 1e-5F;
        const auto n = static_cast<double>(cols);

        const Rows rms = run(x, gain, nullptr, false, kEps, 2);
        LONGVIEW_COMPARE(rms, [&](std::int64_t r, std::int64_t c) {
            double squares = 0.0;
            for (std::int64_t i = 0; i < cols; ++i) squares += std::pow(x.at(r, i), 2);
            const double y = gain.at(0, c) * (x.at(r, c) / std::sqrt(squares / n + kEps));
            // The sum of squares is off by n epsilon at most, its root by half of that.
            return Expected{y, (0.5 * n + 8) * kEpsilon * std::abs(y) + 1e-37};
        });

        const Rows layer = run(x, gain, &bias, true, kEps, 2);
        const Rows plain = run(x, gain, nullptr, true, kEps, 2);
        const auto expected = [&](std::int64_t r, std::int64_t c, double shift) {
            double sum = 0.0, sizes = 0.0, spread = 0.0;
            for (std::int64_t i = 0; i < cols; ++i) {
                sum += x.at(r, i);
                sizes += std::abs(x.at(r, i));
            }
            for (std::int64_t i = 0; i < cols; ++i) spread += std::pow(x.at(r, i) - sum / n, 2);
            const double deviation = std::sqrt(spread / n + kEps);
            const double y = gain.at(0, c) * ((x.at(r, c) - sum / n) / deviation) + shift;
            // The mean is off by n epsilon times the mean size: this moves every difference, and
            // once more the deviation.
            const double mean_error = (n + 2) * kEpsilon * sizes / n / deviation;
            const double tolerance = std::abs(gain.at(0, c)) * 2 * mean_error +
                                     (n + 12) * kEpsilon * (std::abs(y) + std::abs(shift)) +
                                     std::abs(y) * mean_error;
            return Expected{y, tolerance + 1e-37};
        };
        LONGVIEW_COMPARE(
            layer, [&](std::int64_t r, std::int64_t c) { return expected(r, c, bias.at(0, c)); });
        LONGVIEW_COMPARE(plain,
                         [&](std::int64_t r, std::int64_t c) { return expected(r, c, 0.0); });
    }

    void bitsDoNotDependOnOtherRowsOrThreads() {
        const Rows x = Rows::random(3001, 33, 1), gain = Rows::random(1, 33, 2);
        for (const bool layer : {false, true}) {
            const Rows whole = run(x, gain, nullptr, layer, 1e-5F, 1);
            QVERIFY(whole.same(run(x, gain, nullptr, layer, 1e-5F, 2)));
            QVERIFY(whole.same(run(x, gain, nullptr, layer, 1e-5F, 3)));
            Rows one(1, 33);
            for (std::int64_t c = 0; c < 33; ++c) one.at(0, c) = x.at(2999, c);
            QVERIFY(whole.same_row(2999, run(one, gain, nullptr, layer, 1e-5F, 2), 0));
        }
    }

    void worksInPlace() {
        const Rows x = Rows::random(5, 37, 1), gain = Rows::random(1, 37, 2);
        const Rows apart = run(x, gain, nullptr, false, 1e-5F, 1);
        Rows both = x;
        ThreadPool pool(1);
        cpu::Context context(pool);
        cpu::rms_norm(context, both.view(), gain.row(0), 1e-5F, both.matrix());
        QVERIFY(both.same(apart));
        QVERIFY(both.guards_intact());
    }

    void nanFillsItsRowAlone() {
        Rows x = Rows::random(3, 37, 1);
        x.at(1, 36) = NAN;
        const Rows gain = Rows::random(1, 37, 2);
        for (const bool layer : {false, true}) {
            const Rows out = run(x, gain, nullptr, layer, 1e-5F, 1);
            for (std::int64_t r = 0; r < 3; ++r)
                for (std::int64_t c = 0; c < 37; ++c) QCOMPARE(std::isnan(out.at(r, c)), r == 1);
        }
    }

    void wrongShapesAreRefused() {
        const Rows x = Rows::random(2, 4, 1);
        Rows out(2, 5);
        ThreadPool pool(1);
        cpu::Context context(pool);
        LONGVIEW_THROWS(cpu::rms_norm(context, x.view(), x.row(0), 0.0F, out.matrix()),
                        Category::kBug);
        LONGVIEW_THROWS(cpu::layer_norm(context, x.view(), x.row(0), nullptr, 0.0F, out.matrix()),
                        Category::kBug);
    }
};

LONGVIEW_KERNEL_TEST_MAIN(NormTest)
#include "norm_test.moc"

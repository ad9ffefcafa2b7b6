// Linear layers against float64 formulas, and their reproducibility bit for bit.
#include <QtTest>
#include <cmath>
#include <vector>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/cancel.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::test;

namespace {

double apply(Activation activation, double x) {
    switch (activation) {
        case Activation::kNone:
            return x;
        case Activation::kSilu:
            return x / (1.0 + std::exp(-x));
        case Activation::kSigmoid:
            return 1.0 / (1.0 + std::exp(-x));
        case Activation::kGelu:
            return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    }
    return NAN;
}

// Normalised rows in double.
std::vector<double> normalise(const Rows& x, Norm norm, const Rows& gain, const Rows& bias,
                              double eps) {
    std::vector<double> u;
    const auto n = static_cast<double>(x.cols());
    for (std::int64_t r = 0; r < x.rows(); ++r) {
        double sum = 0.0, squares = 0.0, spread = 0.0;
        for (std::int64_t c = 0; c < x.cols(); ++c) {
            const double v = x.at(r, c);
            sum += v;
            squares += v * v;
        }
        for (std::int64_t c = 0; c < x.cols(); ++c) spread += std::pow(x.at(r, c) - sum / n, 2);
        for (std::int64_t c = 0; c < x.cols(); ++c) {
            const double v = x.at(r, c), g = gain.at(0, c);
            if (norm == Norm::kNone) u.push_back(v);
            if (norm == Norm::kRms) u.push_back(g * v / std::sqrt(squares / n + eps));
            if (norm == Norm::kLayer)
                u.push_back(g * (v - sum / n) / std::sqrt(spread / n + eps) + bias.at(0, c));
        }
    }
    return u;
}

// A dot product of k terms in any order is off by at most k epsilon times the sum of their sizes;
// normed inputs are themselves off by some (k + 8) epsilon.
Expected dot(const std::vector<double>& u, std::int64_t row, const Weights& w, std::int64_t out,
             std::int64_t k, bool normed) {
    double sum = 0.0, sizes = 0.0;
    for (std::int64_t i = 0; i < k; ++i) {
        const double term = u[static_cast<std::size_t>(row * k + i)] * w.at(out, i);
        sum += term;
        sizes += std::abs(term);
    }
    const double steps = static_cast<double>(normed ? 2 * k + 24 : k + 8);
    return {sum, steps * kEpsilon * sizes};
}

struct Case {
    std::int64_t rows, in, out;
};

// 0, 1, primes, the tile sizes (3 or 6 rows, 4 or 8 outputs, 8 or 16 lanes, 96 rows and 48 outputs
// a piece, 768 inputs a block) and one more or less.
const Case kCases[] = {{0, 16, 8},   {1, 1, 1},    {1, 8, 8},     {1, 257, 131}, {2, 31, 9},
                       {3, 64, 4},   {4, 65, 5},   {5, 7, 3},     {6, 16, 7},    {7, 33, 17},
                       {8, 767, 13}, {9, 768, 12}, {13, 769, 49}, {48, 100, 47}, {95, 40, 48},
                       {96, 24, 50}, {97, 23, 97}, {193, 19, 31}, {1, 1600, 70}, {20, 1543, 52},
                       {3, 0, 5},    {12, 5, 0}};

}  // namespace

class LinearTest : public QObject {
    Q_OBJECT

  private slots:
    void comparisonFailsOnNan() {
        Rows rows = Rows::random(2, 3, 1);
        const Rows same = rows;
        const auto expected = [&](std::int64_t r, std::int64_t c) {
            return Expected{same.at(r, c), 0.0};
        };
        QVERIFY(difference(rows, expected).isEmpty());
        rows.at(1, 1) = NAN;
        QVERIFY(!difference(rows, expected).isEmpty());
        rows = same;
        rows.at(1, 3) = 0.0F;  // a gap between rows
        QVERIFY(!difference(rows, expected).isEmpty());
    }

    void matchesFormula_data() {
        QTest::addColumn<int>("index");
        QTest::addColumn<int>("dtype");
        for (int i = 0; i < static_cast<int>(std::size(kCases)); ++i) {
            for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
                const Case& c = kCases[i];
                QTest::addRow("%d rows, %d in, %d out, %s", static_cast<int>(c.rows),
                              static_cast<int>(c.in), static_cast<int>(c.out), dtype_name(dtype))
                    << i << static_cast<int>(dtype);
            }
        }
    }
    void matchesFormula() {
        QFETCH(int, index);
        QFETCH(int, dtype);
        const Case& s = kCases[index];
        const Weights w(s.out, s.in, static_cast<DType>(dtype), 7);
        const Rows x = Rows::random(s.rows, s.in, 8);
        Rows out(s.rows, s.out);
        ThreadPool pool(2);
        cpu::Context context(pool);
        NormLinearParams p;
        p.x = x.view();
        LinearOutput o;
        o.weight = w.view();
        o.out = out.matrix();
        p.outputs = {&o, 1};
        cpu::norm_linear(context, p);
        const auto u = normalise(x, Norm::kNone, x, x, 0.0);
        LONGVIEW_COMPARE(
            out, [&](std::int64_t r, std::int64_t c) { return dot(u, r, w, c, s.in, false); });
    }

    void normBiasAndActivationMatchFormula_data() {
        QTest::addColumn<int>("norm");
        QTest::addColumn<bool>("keep");
        QTest::addColumn<int>("rows");
        for (const int rows : {1, 5, 100}) {
            for (const bool keep : {false, true}) {
                QTest::addRow("no norm, %d rows, keep %d", rows, keep) << 0 << keep << rows;
                QTest::addRow("RMS, %d rows, keep %d", rows, keep) << 1 << keep << rows;
                QTest::addRow("layer, %d rows, keep %d", rows, keep) << 2 << keep << rows;
            }
        }
    }
    void normBiasAndActivationMatchFormula() {
        QFETCH(int, norm);
        QFETCH(bool, keep);
        QFETCH(int, rows);
        constexpr std::int64_t kIn = 75;
        constexpr double kEps = 1e-5;
        const Rows x = Rows::random(rows, kIn, 1), gain = Rows::random(1, kIn, 2),
                   norm_bias = Rows::random(1, kIn, 3);
        Rows normed(rows, kIn);
        NormLinearParams p;
        p.x = x.view();
        p.norm = static_cast<Norm>(norm);
        p.gain = gain.row(0);
        p.norm_bias = norm_bias.row(0);
        p.eps = static_cast<float>(kEps);
        if (keep) p.normed = normed.matrix();
        // One output for each activation, of different sizes; every second without bias.
        const Activation activations[] = {Activation::kNone, Activation::kSilu,
                                          Activation::kSigmoid, Activation::kGelu};
        std::vector<Weights> weights;
        std::vector<Rows> outs, biases;
        std::vector<LinearOutput> outputs(4);
        for (std::size_t i = 0; i < 4; ++i) {
            const auto size = static_cast<std::int64_t>(3 + 22 * i);
            weights.emplace_back(size, kIn, DType::kBF16, 10 + i);
            biases.push_back(Rows::random(1, size, 20 + i));
            outs.emplace_back(rows, size);
        }
        for (std::size_t i = 0; i < 4; ++i)
            outputs[i] = {weights[i].view(), i % 2 == 0 ? biases[i].row(0) : nullptr,
                          activations[i], outs[i].matrix()};
        p.outputs = outputs;
        ThreadPool pool(2);
        cpu::Context context(pool);
        cpu::norm_linear(context, p);

        const auto u = normalise(x, p.norm, gain, norm_bias, static_cast<double>(p.eps));
        if (keep) {
            LONGVIEW_COMPARE(normed, [&](std::int64_t r, std::int64_t c) {
                const double value = u[static_cast<std::size_t>(r * kIn + c)];
                return Expected{value, (kIn + 24) * kEpsilon * (std::abs(value) + 1.0)};
            });
        }
        for (std::size_t i = 0; i < 4; ++i) {
            LONGVIEW_COMPARE(outs[i], [&](std::int64_t r, std::int64_t c) {
                Expected e = dot(u, r, weights[i], c, kIn, true);
                // Layer norms subtract a mean whose error is not relative to u.
                e.tolerance += 40 * kEpsilon * kIn;
                if (i % 2 == 0) e.value += biases[i].at(0, c);
                const double y = apply(activations[i], e.value);
                // No activation is steeper than 1.13; their own error is below 1e-6.
                return Expected{y, 1.13 * e.tolerance + 2e-6 * (std::abs(y) + std::abs(e.value))};
            });
        }
    }

    void activationsAreAccurateToTheirOwnSize() {
        // The product with 1 passes the input through, so only the activation is at work.
        std::vector<float> inputs = {0.0F, -0.0F, 1e-30F, -1e-30F};
        for (float v = -13.0F; v < 30.0F; v += 0.0371F) inputs.push_back(v);
        const auto rows = static_cast<std::int64_t>(inputs.size());
        Rows x(rows, 1), out(rows, 1);
        for (std::int64_t r = 0; r < rows; ++r) x.at(r, 0) = inputs[static_cast<std::size_t>(r)];
        Weights one(1, 1, DType::kF32, 1);
        one.set(0, 1.0F);
        ThreadPool pool(1);
        cpu::Context context(pool);
        for (const Activation a : {Activation::kSilu, Activation::kSigmoid, Activation::kGelu}) {
            LinearOutput o;
            o.weight = one.view();
            o.activation = a;
            o.out = out.matrix();
            NormLinearParams p;
            p.x = x.view();
            p.outputs = {&o, 1};
            cpu::norm_linear(context, p);
            LONGVIEW_COMPARE(out, [&](std::int64_t r, std::int64_t) {
                const double y = apply(a, x.at(r, 0));
                return Expected{y, 1e-6 * std::abs(y)};
            });
        }
    }

    void activationsOfExtremesAreTheirLimits() {
        const float inputs[] = {-1e30F, -200.0F, 200.0F, 1e30F};
        Rows x(4, 1), out(4, 1);
        for (std::int64_t r = 0; r < 4; ++r) x.at(r, 0) = inputs[r];
        Weights one(1, 1, DType::kF32, 1);
        one.set(0, 1.0F);
        ThreadPool pool(1);
        cpu::Context context(pool);
        for (const Activation a : {Activation::kSilu, Activation::kSigmoid, Activation::kGelu}) {
            LinearOutput o;
            o.weight = one.view();
            o.activation = a;
            o.out = out.matrix();
            NormLinearParams p;
            p.x = x.view();
            p.outputs = {&o, 1};
            cpu::norm_linear(context, p);
            for (std::int64_t r = 0; r < 4; ++r) {
                const float limit = r < 2 ? 0.0F : a == Activation::kSigmoid ? 1.0F : inputs[r];
                QCOMPARE(out.at(r, 0), limit);
            }
        }
    }

    void residualMatchesFormula_data() {
        QTest::addColumn<bool>("norm");
        QTest::addColumn<bool>("gate");
        QTest::addColumn<bool>("bias");
        QTest::addColumn<int>("rows");
        for (int i = 0; i < 8; ++i)
            for (const int rows : {0, 1, 2, 8, 131})
                QTest::addRow("norm %d, gate %d, bias %d, %d rows", i & 1, i >> 1 & 1, i >> 2, rows)
                    << ((i & 1) != 0) << ((i & 2) != 0) << ((i & 4) != 0) << rows;
    }
    void residualMatchesFormula() {
        QFETCH(bool, norm);
        QFETCH(bool, gate);
        QFETCH(bool, bias);
        QFETCH(int, rows);
        constexpr std::int64_t kIn = 83, kOut = 53;
        const Rows in = Rows::random(rows, kIn, 1), gain = Rows::random(1, kIn, 2),
                   gates = Rows::random(rows, kIn, 3), biases = Rows::random(1, kOut, 4),
                   skip = Rows::random(rows, kOut, 5, 0);
        const Weights w(kOut, kIn, DType::kBF16, 6);
        Rows out(rows, kOut);
        LinearResidualParams p;
        p.in = in.view();
        p.norm_gain = norm ? gain.row(0) : nullptr;
        p.norm_eps = 1e-6F;
        if (gate) p.gate = gates.view();
        p.weight = w.view();
        p.bias = bias ? biases.row(0) : nullptr;
        p.skip = skip.view();
        p.alpha = 1.75F;
        p.beta = 0.9375F;
        p.out = out.matrix();
        ThreadPool pool(2);
        cpu::Context context(pool);
        cpu::linear_residual(context, p);

        auto u = normalise(in, norm ? Norm::kRms : Norm::kNone, gain, gain, 1e-6);
        for (std::int64_t r = 0; gate && r < rows; ++r)
            for (std::int64_t c = 0; c < kIn; ++c)
                u[static_cast<std::size_t>(r * kIn + c)] *= gates.at(r, c);
        const auto expected = [&](std::int64_t r, std::int64_t c) {
            Expected e = dot(u, r, w, c, kIn, true);
            if (bias) e.value += biases.at(0, c);
            const double y = 1.75 * skip.at(r, c) + 0.9375 * e.value;
            return Expected{y, e.tolerance + 8 * kEpsilon * (2.0 + std::abs(e.value))};
        };
        LONGVIEW_COMPARE(out, expected);

        // In place: skip is out.
        Rows both = Rows::random(rows, kOut, 5);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < kOut; ++c) both.at(r, c) = skip.at(r, c);
        p.skip = both.view();
        p.out = both.matrix();
        cpu::linear_residual(context, p);
        QVERIFY(both.same(out));
        QVERIFY(both.guards_intact());
    }

    void rowsAreTheSameBitsInEveryCallAndWithEveryThreadCount_data() {
        QTest::addColumn<int>("dtype");
        QTest::addColumn<int>("in");
        for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
            for (const int in : {37, 256, 1601})
                QTest::addRow("%s, %d in", dtype_name(dtype), in) << static_cast<int>(dtype) << in;
    }
    void rowsAreTheSameBitsInEveryCallAndWithEveryThreadCount() {
        QFETCH(int, dtype);
        QFETCH(int, in);
        constexpr std::int64_t kRows = 211, kOut = 61;
        const Rows x = Rows::random(kRows, in, 1), gain = Rows::random(1, in, 2);
        const Weights w(kOut, in, static_cast<DType>(dtype), 3);
        const auto run = [&](int threads, std::int64_t first, std::int64_t rows) {
            Rows out(rows, kOut);
            ThreadPool pool(threads);
            cpu::Context context(pool);
            NormLinearParams p;
            p.x = x.view().slice(first, rows);
            p.norm = Norm::kRms;
            p.gain = gain.row(0);
            p.eps = 1e-5F;
            LinearOutput o;
            o.weight = w.view();
            o.activation = Activation::kSilu;
            o.out = out.matrix();
            p.outputs = {&o, 1};
            cpu::norm_linear(context, p);
            return out;
        };
        const Rows whole = run(1, 0, kRows);
        QVERIFY(whole.same(run(2, 0, kRows)));
        QVERIFY(whole.same(run(3, 0, kRows)));
        for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 95, 96, 97, 130}) {
            const std::int64_t first = kRows - rows;
            const Rows part = run(2, first, rows);
            for (std::int64_t r = 0; r < rows; ++r) QVERIFY(part.same_row(r, whole, first + r));
        }
    }

    void moreRowsThanOnePassHoldsAreAllComputed() {
        constexpr std::int64_t kRows = 2003, kIn = 9, kOut = 5;
        const Rows x = Rows::random(kRows, kIn, 1), gain = Rows::random(1, kIn, 2);
        const Weights w(kOut, kIn, DType::kBF16, 3);
        Rows out(kRows, kOut);
        ThreadPool pool(2);
        cpu::Context context(pool);
        NormLinearParams p;
        p.x = x.view();
        p.norm = Norm::kRms;
        p.gain = gain.row(0);
        p.eps = 1e-5F;
        LinearOutput o;
        o.weight = w.view();
        o.out = out.matrix();
        p.outputs = {&o, 1};
        cpu::norm_linear(context, p);
        const auto u = normalise(x, Norm::kRms, gain, gain, static_cast<double>(p.eps));
        LONGVIEW_COMPARE(
            out, [&](std::int64_t r, std::int64_t c) { return dot(u, r, w, c, kIn, true); });
    }

    void nanStaysInItsRow() {
        for (const std::int64_t rows : {1, 3, 20}) {
            Rows x = Rows::random(rows, 40, 1);
            x.at(rows - 1, 17) = NAN;
            const Weights w(11, 40, DType::kBF16, 2);
            const Rows gain = Rows::random(1, 40, 3);
            Rows out(rows, 11);
            ThreadPool pool(1);
            cpu::Context context(pool);
            for (const Activation a :
                 {Activation::kNone, Activation::kSilu, Activation::kSigmoid, Activation::kGelu}) {
                NormLinearParams p;
                p.x = x.view();
                p.norm = Norm::kRms;
                p.gain = gain.row(0);
                LinearOutput o;
                o.weight = w.view();
                o.activation = a;
                o.out = out.matrix();
                p.outputs = {&o, 1};
                cpu::norm_linear(context, p);
                for (std::int64_t r = 0; r < rows; ++r)
                    for (std::int64_t c = 0; c < 11; ++c)
                        QCOMPARE(std::isnan(out.at(r, c)), r == rows - 1);
            }
        }
    }

    void everyBlockingCoversItsRowsAndFitsItsArrays() {
        for (const std::int64_t inputs : {0, 1, 256, 6144, 24576}) {
            QCOMPARE(cpu::Blocking::of(0, inputs).row_blocks, 0);
            for (std::int64_t rows = 1; rows < 1000; rows += 7) {
                const auto b = cpu::Blocking::of(rows, inputs);
                QVERIFY(b.rows <= cpu::Blocking::kMaxRows && b.outputs > 0);
                QVERIFY(b.rows * b.row_blocks >= rows && b.rows * (b.row_blocks - 1) < rows);
            }
        }
    }

    void wrongShapesAreRefused() {
        const Rows x = Rows::random(2, 8, 1);
        const Weights w(4, 9, DType::kF32, 2);
        Rows out(2, 4);
        ThreadPool pool(1);
        cpu::Context context(pool);
        LinearOutput o;
        o.weight = w.view();
        o.out = out.matrix();
        NormLinearParams p;
        p.x = x.view();
        p.outputs = {&o, 1};
        LONGVIEW_THROWS(cpu::norm_linear(context, p), Category::kBug);
        LinearResidualParams q;
        q.in = x.view();
        q.weight = w.view();
        q.skip = out.view();
        q.out = out.matrix();
        LONGVIEW_THROWS(cpu::linear_residual(context, q), Category::kBug);
        QVERIFY(out.guards_intact());
    }

    void raisedFlagStopsTheOperator() {
        const Rows x = Rows::random(200, 64, 1);
        const Weights w(96, 64, DType::kBF16, 2);
        Rows out(200, 96);
        ThreadPool pool(2);
        CancelFlag flag;
        flag.raise();
        pool.set_cancel_flag(&flag);
        cpu::Context context(pool);
        LinearOutput o;
        o.weight = w.view();
        o.out = out.matrix();
        NormLinearParams p;
        p.x = x.view();
        p.outputs = {&o, 1};
        LONGVIEW_THROWS(cpu::norm_linear(context, p), Category::kCancelled);
    }
};

LONGVIEW_KERNEL_TEST_MAIN(LinearTest)
#include "linear_test.moc"

// Lightning attention against the recurrence in float64.
#include <QTest>

#include <cmath>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/cancel.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/kernels/attention_check.h"
#include "tests/kernels/instruction_sets.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::testing;

namespace {

struct Problem {
    std::int64_t rows = 0;
    int heads = 1;
    int head_dim = 8;
    std::int64_t position = 0;
    std::vector<float> slopes;
    std::vector<float> qkv;    // [rows, heads * 3 * head_dim]
    std::vector<float> state;  // [heads, head_dim, head_dim]
};

struct Result {
    std::vector<float> out;
    std::vector<float> state;
    bool intact = true;
};

Problem make_problem(std::int64_t rows, int heads, int head_dim, std::int64_t position,
                     const std::vector<float>& slopes) {
    Numbers numbers(static_cast<std::uint64_t>(rows * 1000 + heads * 100 + head_dim));
    Problem p{rows, heads, head_dim, position, {}, {}, {}};
    for (int h = 0; h < heads; ++h)
        p.slopes.push_back(slopes[static_cast<std::size_t>(h) % slopes.size()]);
    p.qkv = numbers.many(rows * heads * 3 * head_dim);
    p.state = numbers.many(std::int64_t{heads} * head_dim * head_dim, 4.0F);
    return p;
}

/// The rows of the problem in calls of the given lengths.
Result run(const Problem& p, const std::vector<std::int64_t>& calls, int threads) {
    ThreadPool pool(threads);
    cpu::Context context(pool);
    const std::int64_t width = std::int64_t{p.heads} * p.head_dim;
    GuardedRows qkv(p.rows, 3 * width, p.qkv);
    GuardedRows out(p.rows, width);
    std::vector<float> plain_state = p.state;
    plain_state.resize(plain_state.size() + 32, 7.25F);  // guard band
    std::int64_t first = 0;
    for (const std::int64_t count : calls) {
        LightningParams params;
        params.qkv = ConstMatrix(qkv.view()).slice(first, count);
        params.heads = p.heads;
        params.head_dim = p.head_dim;
        params.slopes = p.slopes.data();
        params.state = plain_state.data();
        params.position = p.position + first;
        params.out = out.view().slice(first, count);
        cpu::lightning_attention(context, params);
        first += count;
    }
    Result r{out.values(), plain_state, out.intact() && qkv.intact()};
    for (std::size_t i = p.state.size(); i < r.state.size(); ++i)
        r.intact = r.intact && r.state[i] == 7.25F;
    r.state.resize(p.state.size());
    return r;
}

struct Expected {
    std::vector<double> out, out_size;
    std::vector<double> state, state_size;
};

/// S_t = exp(-s) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t. The sizes are the same sums over absolute
/// values: what rounding errors are relative to.
Expected recurrence(const Problem& p) {
    Expected e;
    const std::size_t d = static_cast<std::size_t>(p.head_dim);
    const std::size_t heads = static_cast<std::size_t>(p.heads);
    const std::size_t rows = static_cast<std::size_t>(p.rows);
    e.state.assign(p.state.begin(), p.state.end());
    for (const float x : p.state) e.state_size.push_back(std::abs(static_cast<double>(x)));
    e.out.assign(rows * heads * d, 0.0);
    e.out_size.assign(rows * heads * d, 0.0);
    for (std::size_t h = 0; h < heads; ++h) {
        const double decay = std::exp(-static_cast<double>(p.slopes[h]));
        double* const state = e.state.data() + h * d * d;
        double* const size = e.state_size.data() + h * d * d;
        for (std::size_t t = 0; t < rows; ++t) {
            const float* const q = p.qkv.data() + (t * heads + h) * 3 * d;
            const float* const k = q + d;
            const float* const v = k + d;
            for (std::size_t c = 0; c < d; ++c)
                for (std::size_t i = 0; i < d; ++i) {
                    const double kv = static_cast<double>(k[c]) * static_cast<double>(v[i]);
                    state[c * d + i] = decay * state[c * d + i] + kv;
                    size[c * d + i] = decay * size[c * d + i] + std::abs(kv);
                    const auto q_c = static_cast<double>(q[c]);
                    e.out[(t * heads + h) * d + i] += q_c * state[c * d + i];
                    e.out_size[(t * heads + h) * d + i] += std::abs(q_c) * size[c * d + i];
                }
        }
    }
    return e;
}

/// A product that reached the state passed at most one addition a row and, for every call or
/// tile, a decay and its rounding (3 with the product's own); reading adds head_dim additions and
/// 3 more. All relative to the sum of absolute values; 1e-38 for results that underflow.
QString misses_of(const Problem& p, const Result& r, std::size_t calls) {
    const Expected e = recurrence(p);
    const double pieces = static_cast<double>(p.rows) / 64.0 + 2.0 + static_cast<double>(calls);
    const double state_unit = (static_cast<double>(p.rows) + 3.0 * pieces) * kUnit;
    const double out_unit = state_unit + (p.head_dim + 6.0) * kUnit;
    std::vector<double> tolerance;
    for (const double size : e.out_size) tolerance.push_back(size * out_unit + 1e-37);
    const QString out = misses(r.out, e.out, tolerance);
    if (!out.isEmpty()) return QStringLiteral("out: ") + out;
    tolerance.clear();
    for (const double size : e.state_size) tolerance.push_back(size * state_unit + 1e-37);
    const QString state = misses(r.state, e.state, tolerance);
    return state.isEmpty() ? state : QStringLiteral("state: ") + state;
}

// From the slowest head of the last lightning layer over layer 0's extremes to slopes whose decay
// underflows within a tile, or at once.
const std::vector<float> kSlopes = {4.94853e-5F, 0.003906289F, 0.9170132F, 3.0F, 30.0F, 500.0F};

}  // namespace

class LightningTest : public QObject {
    Q_OBJECT

  private slots:
    void matchesTheRecurrence_data() {
        QTest::addColumn<int>("rows");
        QTest::addColumn<int>("heads");
        QTest::addColumn<int>("head_dim");
        QTest::addColumn<int>("position");
        const int rows[] = {1, 2, 3, 7, 61, 63, 64, 65, 127, 128, 129, 200};
        const int positions[] = {0, 1, 5, 63, 64, 100};
        for (const int n : rows)
            for (const int position : positions)
                QTest::addRow("%d rows at %d", n, position) << n << 2 << 16 << position;
        for (const int dim : {1, 2, 5, 8, 13, 24, 31, 32, 64, 72, 128, 136})
            QTest::addRow("head_dim %d", dim) << 131 << 3 << dim << 37;
        QTest::newRow("all slopes") << 150 << 6 << 24 << 3;
    }
    void matchesTheRecurrence() {
        QFETCH(int, rows);
        QFETCH(int, heads);
        QFETCH(int, head_dim);
        QFETCH(int, position);
        const Problem p = make_problem(rows, heads, head_dim, position, kSlopes);
        const Result r = run(p, {rows}, 2);
        QVERIFY(r.intact);
        const QString miss = misses_of(p, r, 1);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void doesNothingForZeroRows() {
        const Problem p = make_problem(0, 2, 8, 5, kSlopes);
        const Result r = run(p, {0}, 2);
        QVERIFY(r.intact);
        QVERIFY(same_bits(r.state, p.state));
    }

    void goldenSlopeDecaysTheState() {
        // Model-spec 3.3: s(0,0) = 0.9170132; with k = 0 the state only fades.
        Problem p = make_problem(3, 1, 8, 0, {0.9170132F});
        std::fill(p.qkv.begin(), p.qkv.end(), 0.0F);
        std::fill(p.state.begin(), p.state.end(), 1.0F);
        const Result r = run(p, {3}, 1);
        for (const float x : r.state) QVERIFY(std::abs(x - std::exp(-3 * 0.9170132)) <= 1e-8);
    }

    void splitsAtTilesAreBitEqual_data() {
        QTest::addColumn<int>("position");
        QTest::addColumn<QList<int>>("calls");
        QTest::newRow("each tile") << 0 << QList<int>{64, 64, 64, 64, 9};
        QTest::newRow("two and more") << 0 << QList<int>{128, 137};
        QTest::newRow("off the grid") << 50 << QList<int>{14, 128, 64, 59};
        QTest::newRow("single last row") << 0 << QList<int>{192, 64, 9};
        QTest::newRow("from one row") << 63 << QList<int>{1, 64, 192, 8};
    }
    void splitsAtTilesAreBitEqual() {
        QFETCH(int, position);
        QFETCH(QList<int>, calls);
        for (const int dim : {24, 64}) {
            const Problem p = make_problem(265, 3, dim, position, kSlopes);
            const Result whole = run(p, {265}, 1);
            const Result parts = run(p, {calls.begin(), calls.end()}, 1);
            QVERIFY(same_bits(whole.out, parts.out));
            QVERIFY(same_bits(whole.state, parts.state));
        }
    }

    void longCallsAreCutInPassesWithoutATrace() {
        // More rows than one pass between two looks at the cancel flag takes.
        const std::int64_t rows = 64 * 70 + 11;
        const Problem p = make_problem(rows, 2, 8, 17, {4.94853e-5F, 0.02F});
        const Result whole = run(p, {rows}, 2);
        const Result parts = run(p, {47, 64 * 40, rows - 47 - 64 * 40}, 1);
        QVERIFY(whole.intact);
        QVERIFY(same_bits(whole.out, parts.out));
        QVERIFY(same_bits(whole.state, parts.state));
        const QString miss = misses_of(p, whole, 1);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void anySplitMatchesTheRecurrence_data() {
        QTest::addColumn<QList<int>>("calls");
        QTest::newRow("one by one") << QList<int>(141, 1);
        QTest::newRow("ragged") << QList<int>{1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 11};
        QTest::newRow("zero rows between") << QList<int>{70, 0, 1, 0, 70};
    }
    void anySplitMatchesTheRecurrence() {
        QFETCH(QList<int>, calls);
        const Problem p = make_problem(141, 4, 40, 9, kSlopes);
        const Result r = run(p, {calls.begin(), calls.end()}, 3);
        QVERIFY(r.intact);
        const QString miss = misses_of(p, r, static_cast<std::size_t>(calls.size()));
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void bitsDoNotDependOnThreads_data() {
        QTest::addColumn<int>("heads");
        QTest::addColumn<int>("head_dim");
        QTest::newRow("more heads than threads") << 5 << 32;
        QTest::newRow("columns shared out") << 1 << 128;
        QTest::newRow("odd columns shared out") << 2 << 75;
    }
    void bitsDoNotDependOnThreads() {
        QFETCH(int, heads);
        QFETCH(int, head_dim);
        const Problem p = make_problem(130, heads, head_dim, 1, {0.01F, 0.3F});
        for (const std::vector<std::int64_t>& calls :
             {std::vector<std::int64_t>{130}, std::vector<std::int64_t>{1, 1, 128}}) {
            const Result one = run(p, calls, 1);
            for (const int threads : {2, 3, 8}) {
                const Result more = run(p, calls, threads);
                QVERIFY(more.intact);
                QVERIFY(same_bits(one.out, more.out));
                QVERIFY(same_bits(one.state, more.state));
            }
        }
    }

    void matchesTheRecurrenceOnEveryInstructionSet() {
        on_each_instruction_set([](const char* name) {
            for (const int dim : {13, 16, 72}) {
                const Problem p = make_problem(130, 3, dim, 5, kSlopes);
                const Result whole = run(p, {130}, 2);
                QVERIFY2(whole.intact, name);
                const QString miss = misses_of(p, whole, 1);
                QVERIFY2(miss.isEmpty(), qPrintable(name + (": " + miss)));
                const Result parts = run(p, {59, 64, 7}, 1);
                QVERIFY2(same_bits(whole.out, parts.out), name);
                QVERIFY2(same_bits(whole.state, parts.state), name);
                QVERIFY2(same_bits(whole.out, run(p, {130}, 7).out), name);
            }
        });
    }

    void refusesBrokenShapes() {
        ThreadPool pool(1);
        cpu::Context context(pool);
        GuardedRows qkv(2, 47);
        GuardedRows out(2, 16);
        LightningParams p;
        p.qkv = qkv.view();
        p.heads = 2;
        p.head_dim = 8;
        p.out = out.view();
        try {
            cpu::lightning_attention(context, p);
            QFAIL("47 columns were accepted");
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
        Problem p = make_problem(64, 2, 8, 0, {0.1F});
        std::vector<float> out(64 * 16);
        LightningParams params;
        params.qkv = {p.qkv.data(), DType::kF32, 64, 48, 48};
        params.heads = 2;
        params.head_dim = 8;
        params.slopes = p.slopes.data();
        params.state = p.state.data();
        params.out = {out.data(), DType::kF32, 64, 16, 16};
        try {
            cpu::lightning_attention(context, params);
            QFAIL("a raised flag was ignored");
        } catch (const Error& e) {
            QCOMPARE(e.category(), Category::kCancelled);
        }
    }
};

QTEST_GUILESS_MAIN(LightningTest)
#include "lightning_test.moc"

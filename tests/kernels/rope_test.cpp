// Rotary embedding and the key/value cache against model-spec 4 in float64.
#include <QTest>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/kernels/kv_check.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::testing;

namespace {

struct Problem {
    std::int64_t rows;
    std::int64_t position;
    int heads = 3;
    int kv_heads = 2;
    int head_dim = 12;
    int rotary_dim = 8;
    double theta = 1e7;
    std::vector<float> q, k, v;

    Problem(std::int64_t n, std::int64_t start) : rows(n), position(start) { refill(); }
    void refill() {
        Numbers numbers(static_cast<std::uint64_t>(rows * 100 + head_dim));
        q = numbers.many(rows * heads * head_dim);
        k = numbers.many(rows * kv_heads * head_dim);
        v = numbers.many(rows * kv_heads * head_dim);
    }
};

struct Result {
    std::vector<float> q, k, v;
    bool intact = true;
};

Result run(const Problem& p, const std::vector<std::int64_t>& calls, std::int64_t page_tokens,
           DType dtype, int threads) {
    ThreadPool pool(threads);
    cpu::Context context(pool);
    const std::int64_t kv_width = std::int64_t{p.kv_heads} * p.head_dim;
    GuardedRows q(p.rows, std::int64_t{p.heads} * p.head_dim, p.q);
    GuardedRows k(p.rows, kv_width, p.k);
    GuardedRows v(p.rows, kv_width, p.v);
    // Pages for positions from p.position on, handed in as if those before lay elsewhere: a cache
    // of millions of positions is not needed to test one.
    const std::int64_t skipped = p.position / page_tokens;
    KvStore store(p.position - skipped * page_tokens + p.rows, page_tokens, dtype, p.kv_heads,
                  p.head_dim);
    std::vector<void*> pages(static_cast<std::size_t>(skipped), nullptr);
    const std::int64_t used =
        (p.position - skipped * page_tokens + p.rows + page_tokens - 1) / page_tokens;
    for (std::int64_t i = 0; i < used; ++i) pages.push_back(store.view().pages[i]);
    pages.push_back(nullptr);

    std::int64_t first = 0;
    for (const std::int64_t count : calls) {
        RopeAppendParams params;
        params.q = q.view().slice(first, count);
        params.k = ConstMatrix(k.view()).slice(first, count);
        params.v = ConstMatrix(v.view()).slice(first, count);
        params.heads = p.heads;
        params.rotary_dim = p.rotary_dim;
        params.theta = p.theta;
        params.position = p.position + first;
        params.kv = store.view();
        params.kv.pages = pages.data();
        cpu::rope_append(context, params);
        first += count;
    }
    Result r{q.values(), {}, {}, q.intact() && k.intact() && v.intact() && store.intact()};
    r.intact = r.intact && same_bits(k.values(), p.k) && same_bits(v.values(), p.v);
    for (std::int64_t row = 0; row < p.rows; ++row)
        for (int h = 0; h < p.kv_heads; ++h)
            for (int i = 0; i < p.head_dim; ++i) {
                const std::int64_t at = p.position - skipped * page_tokens + row;
                r.k.push_back(store.get(at, h, i, false));
                r.v.push_back(store.get(at, h, i, true));
            }
    return r;
}

/// The rows of x turned as the references do: the angle is a float product of floats. The
/// tolerance is two roundings of each product and of the sine and cosine.
void turned(const Problem& p, const std::vector<float>& x, int heads, std::vector<double>* out,
            std::vector<double>* tolerance) {
    const int half = p.rotary_dim / 2;
    for (std::int64_t row = 0; row < p.rows; ++row)
        for (int h = 0; h < heads; ++h) {
            const float* const from = x.data() + (row * heads + h) * p.head_dim;
            for (int i = 0; i < p.head_dim; ++i) {
                if (i >= p.rotary_dim) {
                    out->push_back(static_cast<double>(from[i]));
                    tolerance->push_back(0.0);
                    continue;
                }
                const int pair = i % half;
                const auto theta =
                    static_cast<float>(std::pow(p.theta, -2.0 * pair / p.rotary_dim));
                const float angle = static_cast<float>(p.position + row) * theta;
                const double cosine = std::cos(static_cast<double>(angle));
                const double sine = std::sin(static_cast<double>(angle));
                const double low = static_cast<double>(from[pair]);
                const double high = static_cast<double>(from[pair + half]);
                out->push_back(i < half ? low * cosine - high * sine : high * cosine + low * sine);
                tolerance->push_back(3.0 * kUnit * (std::abs(low) + std::abs(high)) + 1e-37);
            }
        }
}

QString misses_of(const Problem& p, const Result& r, DType dtype) {
    std::vector<double> expected, tolerance;
    turned(p, p.q, p.heads, &expected, &tolerance);
    const QString q = misses(r.q, expected, tolerance);
    if (!q.isEmpty()) return QStringLiteral("q: ") + q;
    expected.clear();
    tolerance.clear();
    turned(p, p.k, p.kv_heads, &expected, &tolerance);
    if (dtype == DType::kBF16)  // half a step of bf16: up to 2^-8 of the value
        for (std::size_t i = 0; i < tolerance.size(); ++i)
            tolerance[i] += std::abs(expected[i]) * 0x1.01p-8;
    const QString k = misses(r.k, expected, tolerance);
    if (!k.isEmpty()) return QStringLiteral("k: ") + k;
    std::vector<float> v = p.v;
    if (dtype == DType::kBF16)
        for (float& x : v) x = bf16_value(bf16_nearest(x));
    return same_bits(r.v, v) ? QString() : QStringLiteral("v was not stored as it is");
}

}  // namespace

class RopeTest : public QObject {
    Q_OBJECT

  private slots:
    void matchesTheFormulaInEveryPageSize_data() {
        QTest::addColumn<int>("page_tokens");
        for (const int tokens : {1, 2, 3, 16, 63, 64, 65, 256})
            QTest::addRow("%d", tokens) << tokens;
    }
    void matchesTheFormulaInEveryPageSize() {
        QFETCH(int, page_tokens);
        for (const DType dtype : {DType::kF32, DType::kBF16})
            for (const std::int64_t rows : {1, 2, 17, 64, 131})
                for (const std::int64_t position : {0, 1, 15, 63, 1000}) {
                    const Problem p(rows, position);
                    const Result r = run(p, {rows}, page_tokens, dtype, 2);
                    QVERIFY(r.intact);
                    const QString miss = misses_of(p, r, dtype);
                    QVERIFY2(miss.isEmpty(), qPrintable(miss));
                }
    }

    void matchesTheFormulaForEveryShape_data() {
        QTest::addColumn<int>("head_dim");
        QTest::addColumn<int>("rotary_dim");
        QTest::newRow("nothing turned") << 7 << 0;
        QTest::newRow("one pair") << 2 << 2;
        QTest::newRow("all turned") << 16 << 16;
        QTest::newRow("demo") << 64 << 32;
        QTest::newRow("real") << 128 << 64;
    }
    void matchesTheFormulaForEveryShape() {
        QFETCH(int, head_dim);
        QFETCH(int, rotary_dim);
        Problem p(21, 77);
        p.head_dim = head_dim;
        p.rotary_dim = rotary_dim;
        p.refill();
        const Result r = run(p, {21}, 16, DType::kF32, 2);
        QVERIFY(r.intact);
        const QString miss = misses_of(p, r, DType::kF32);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void keepsTheReferenceAngleAtMillionsOfPositions() {
        for (const std::int64_t position : {999983, 4000037, 10239996}) {
            Problem p(3, position);
            p.head_dim = 128;
            p.rotary_dim = 64;
            p.refill();
            const Result r = run(p, {3}, 256, DType::kF32, 1);
            const QString miss = misses_of(p, r, DType::kF32);
            QVERIFY2(miss.isEmpty(), qPrintable(miss));
        }
    }

    void goldenAngles() {
        // Model-spec 4: theta_1 = 0.60429639 and theta_16 = 3.1622777e-4 of base 1e7, 64 dims.
        Problem p(1, 1);
        p.heads = p.kv_heads = 1;
        p.head_dim = p.rotary_dim = 64;
        p.q.assign(64, 0.0F);
        p.q[1] = p.q[16] = 1.0F;
        p.k = p.v = p.q;
        const Result r = run(p, {1}, 4, DType::kF32, 1);
        QVERIFY(std::abs(static_cast<double>(r.q[1]) - std::cos(0.60429639)) <= 1e-7);
        QVERIFY(std::abs(static_cast<double>(r.q[33]) - std::sin(0.60429639)) <= 1e-7);
        QVERIFY(std::abs(static_cast<double>(r.q[48]) - 3.1622777e-4) <= 1e-10);
        QVERIFY(same_bits(r.q, r.k));
    }

    void roundsToNearestEven() {
        Problem p(1, 0);  // position 0 turns nothing
        p.heads = p.kv_heads = 1;
        p.head_dim = 8;
        p.rotary_dim = 0;
        p.v = {1.0F,       0x1.01p0F,     0x1.03p0F, 0x1.010002p0F,
               -0x1.01p0F, 3.3895313e38F, 0x1p-149F, 1.0e-40F};
        p.k = p.v;
        p.q = p.v;
        const Result r = run(p, {1}, 4, DType::kBF16, 1);
        const std::vector<float> expected = {1.0F,  1.0F,          0x1.04p0F, 0x1.02p0F,
                                             -1.0F, 3.3895314e38F, 0.0F,      r.v[7]};
        QVERIFY(same_bits(r.v, expected));
        QVERIFY(std::abs(r.v[7] - 1.0e-40F) <= 0x1p-134F);
        QVERIFY(same_bits(r.k, expected));
    }

    void keepsInfinityAndNan() {
        Problem p(1, 0);
        p.heads = p.kv_heads = 1;
        p.head_dim = 4;
        p.rotary_dim = 0;
        const float infinity = std::numeric_limits<float>::infinity();
        // A NaN whose payload lies in the bits that are cut off must not become infinity.
        p.v = {infinity, -infinity, std::bit_cast<float>(0x7f800001U),
               std::bit_cast<float>(0xffffffffU)};
        p.k = p.q = p.v;
        const Result r = run(p, {1}, 4, DType::kBF16, 1);
        QVERIFY(r.v[0] == infinity && r.v[1] == -infinity);
        QVERIFY(std::isnan(r.v[2]) && std::isnan(r.v[3]));
    }

    void splitsAndThreadsAreBitEqual() {
        const Problem p(100, 61);
        const Result whole = run(p, {100}, 7, DType::kBF16, 1);
        const std::vector<std::vector<std::int64_t>> splits = {
            std::vector<std::int64_t>(100, 1), {1, 2, 3, 5, 0, 7, 11, 13, 17, 19, 22}};
        for (const int threads : {1, 2, 3})
            for (const auto& calls : splits) {
                const Result r = run(p, calls, 7, DType::kBF16, threads);
                QVERIFY(r.intact);
                QVERIFY(same_bits(whole.q, r.q));
                QVERIFY(same_bits(whole.k, r.k));
                QVERIFY(same_bits(whole.v, r.v));
            }
    }

    void doesNothingForZeroRows() {
        const Problem p(0, 3);
        QVERIFY(run(p, {0}, 4, DType::kF32, 1).intact);
    }

    void refusesBrokenShapes() {
        Problem p(2, 0);
        p.rotary_dim = 14;  // of 12 dims
        try {
            run(p, {2}, 4, DType::kF32, 1);
            QFAIL("a rotary_dim above head_dim was accepted");
        } catch (const Error& e) {
            QCOMPARE(e.category(), Category::kBug);
        }
    }
};

QTEST_GUILESS_MAIN(RopeTest)
#include "rope_test.moc"

// Routing and the mixture of experts against float64 formulas.
#include <QtTest>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/runtime/cancel.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::test;

namespace {

struct Routing {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;

    Routing(std::int64_t rows, int top_k)
        : ids(static_cast<std::size_t>(rows * top_k), -77),
          weights(static_cast<std::size_t>(rows * top_k), -77.0F) {}

    // Different experts for a row, in no order, with weights that add up to 1.
    static Routing random(std::int64_t rows, int top_k, int experts, std::uint64_t seed) {
        Routing result(rows, top_k);
        Random random(seed);
        std::vector<std::int32_t> all(static_cast<std::size_t>(experts));
        for (std::int64_t r = 0; r < rows; ++r) {
            std::iota(all.begin(), all.end(), 0);
            float sum = 0.0F;
            for (int i = 0; i < top_k; ++i) {
                const auto at = static_cast<std::size_t>(r * top_k + i);
                std::swap(all[static_cast<std::size_t>(i)],
                          all[static_cast<std::size_t>(i + random.below(experts - i))]);
                result.ids[at] = all[static_cast<std::size_t>(i)];
                result.weights[at] = 1.5F + random.next();
                sum += result.weights[at];
            }
            for (int i = 0; i < top_k; ++i)
                result.weights[static_cast<std::size_t>(r * top_k + i)] /= sum;
        }
        return result;
    }
};

struct Layer {
    std::int64_t hidden, inner;
    std::vector<Weights> w1, w3, w2;
    std::vector<ExpertWeights> views;

    Layer(int experts, std::int64_t hidden_, std::int64_t inner_, DType dtype)
        : hidden(hidden_), inner(inner_) {
        for (int e = 0; e < experts; ++e) {
            const auto seed = static_cast<std::uint64_t>(3 * e + 100);
            w1.emplace_back(inner, hidden, dtype, seed);
            w3.emplace_back(inner, hidden, dtype, seed + 1);
            w2.emplace_back(hidden, inner, dtype, seed + 2);
        }
        for (std::size_t e = 0; e < w1.size(); ++e)
            views.push_back({w1[e].view(), w3[e].view(), w2[e].view()});
    }
};

constexpr float kAlpha = 1.625F, kBeta = 0.9375F;

Rows run(const Layer& layer, const Rows& x, const Routing& routing, int top_k, int threads) {
    Rows out(x.rows(), x.cols());
    ThreadPool pool(threads);
    cpu::Context context(pool);
    ExpertsParams p;
    p.x = x.view();
    p.top_k = top_k;
    p.ids = routing.ids.data();
    p.weights = routing.weights.data();
    p.experts = layer.views;
    p.alpha = kAlpha;
    p.beta = kBeta;
    p.out = out.matrix();
    cpu::experts(context, p);
    return out;
}

Expected dot(const std::vector<Expected>& u, const Weights& w, std::int64_t out) {
    double sum = 0.0, sizes = 0.0, carried = 0.0;
    for (std::size_t i = 0; i < u.size(); ++i) {
        const double factor = w.at(out, static_cast<std::int64_t>(i));
        sum += factor * u[i].value;
        sizes += std::abs(factor * u[i].value);
        carried += std::abs(factor) * u[i].tolerance;
    }
    return {sum, carried + static_cast<double>(u.size() + 8) * kEpsilon * sizes};
}

// One row of the formula, with the error that its steps may carry on.
std::vector<Expected> formula(const Layer& layer, const Rows& x, std::int64_t row,
                              const Routing& routing, int top_k) {
    std::vector<Expected> input, sum(static_cast<std::size_t>(layer.hidden), {0.0, 0.0});
    for (std::int64_t c = 0; c < layer.hidden; ++c) input.push_back({x.at(row, c), 0.0});
    for (int i = 0; i < top_k; ++i) {
        const auto at = static_cast<std::size_t>(row * top_k + i);
        const auto e = static_cast<std::size_t>(routing.ids[at]);
        std::vector<Expected> inner;
        for (std::int64_t o = 0; o < layer.inner; ++o) {
            const Expected gate = dot(input, layer.w1[e], o), up = dot(input, layer.w3[e], o);
            const double silu = gate.value / (1.0 + std::exp(-gate.value));
            const double value = silu * up.value;
            inner.push_back({value, 1.1 * gate.tolerance * std::abs(up.value) +
                                        std::abs(silu) * up.tolerance + 2e-6 * std::abs(value)});
        }
        for (std::int64_t c = 0; c < layer.hidden; ++c) {
            const Expected y = dot(inner, layer.w2[e], c);
            const double weight = routing.weights[at];
            sum[static_cast<std::size_t>(c)].value += weight * y.value;
            sum[static_cast<std::size_t>(c)].tolerance +=
                weight * (y.tolerance + 8 * kEpsilon * std::abs(y.value));
        }
    }
    for (std::int64_t c = 0; c < layer.hidden; ++c) {
        Expected& e = sum[static_cast<std::size_t>(c)];
        const double skip = kAlpha * x.at(row, c);
        e.tolerance += 8 * kEpsilon * (std::abs(skip) + std::abs(e.value));
        e.value = skip + kBeta * e.value;
    }
    return sum;
}

}  // namespace

class ExpertsTest : public QObject {
    Q_OBJECT

  private slots:
    void matchesFormula_data() {
        QTest::addColumn<int>("rows");
        QTest::addColumn<int>("experts");
        QTest::addColumn<int>("top_k");
        QTest::addColumn<int>("hidden");
        QTest::addColumn<int>("inner");
        QTest::addColumn<int>("dtype");
        for (const DType d : {DType::kF32, DType::kF16, DType::kBF16}) {
            const int t = static_cast<int>(d);
            for (const int rows : {0, 1, 2, 3, 17, 211})
                QTest::addRow("%d rows, %s", rows, dtype_name(d))
                    << rows << 4 << 2 << 40 << 56 << t;
            QTest::addRow("one expert, %s", dtype_name(d)) << 5 << 1 << 1 << 16 << 16 << t;
            QTest::addRow("all of three, %s", dtype_name(d)) << 9 << 3 << 3 << 23 << 11 << t;
            QTest::addRow("tiny, %s", dtype_name(d)) << 4 << 2 << 2 << 1 << 1 << t;
        }
    }
    void matchesFormula() {
        QFETCH(int, rows);
        QFETCH(int, experts);
        QFETCH(int, top_k);
        QFETCH(int, hidden);
        QFETCH(int, inner);
        QFETCH(int, dtype);
        const Layer layer(experts, hidden, inner, static_cast<DType>(dtype));
        const Rows x = Rows::random(rows, hidden, 1);
        const Routing routing = Routing::random(rows, top_k, experts, 2);
        const Rows out = run(layer, x, routing, top_k, 2);
        std::vector<std::vector<Expected>> expected;
        for (std::int64_t r = 0; r < rows; ++r)
            expected.push_back(formula(layer, x, r, routing, top_k));
        LONGVIEW_COMPARE(out, [&](std::int64_t r, std::int64_t c) {
            return expected[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)];
        });
    }

    void rowsAreTheSameBitsAloneAndGroupedAndWithEveryThreadCount() {
        constexpr std::int64_t kRows = 150;
        constexpr int kTopK = 3;
        const Layer layer(5, 45, 67, DType::kBF16);
        const Rows x = Rows::random(kRows, 45, 1);
        const Routing routing = Routing::random(kRows, kTopK, 5, 2);
        const Rows whole = run(layer, x, routing, kTopK, 1);
        QVERIFY(whole.same(run(layer, x, routing, kTopK, 2)));
        QVERIFY(whole.same(run(layer, x, routing, kTopK, 3)));
        for (const std::int64_t rows : {1, 2, 10}) {
            for (std::int64_t first = 0; first < kRows; first += 10) {
                Rows part_x(rows, 45);
                Routing part(rows, kTopK);
                for (std::int64_t r = 0; r < rows; ++r)
                    for (std::int64_t c = 0; c < 45; ++c) part_x.at(r, c) = x.at(first + r, c);
                for (std::int64_t i = 0; i < rows * kTopK; ++i) {
                    const auto from = static_cast<std::size_t>(first * kTopK + i);
                    part.ids[static_cast<std::size_t>(i)] = routing.ids[from];
                    part.weights[static_cast<std::size_t>(i)] = routing.weights[from];
                }
                const Rows out = run(layer, part_x, part, kTopK, 2);
                for (std::int64_t r = 0; r < rows; ++r) QVERIFY(out.same_row(r, whole, first + r));
            }
        }
    }

    void allRowsMayGoToOneExpertEvenTwice() {
        const Layer layer(4, 24, 32, DType::kBF16);
        const Rows x = Rows::random(120, 24, 1);
        Routing routing(120, 2);
        std::fill(routing.ids.begin(), routing.ids.end(), 3);
        std::fill(routing.weights.begin(), routing.weights.end(), 0.5F);
        const Rows out = run(layer, x, routing, 2, 2);
        LONGVIEW_COMPARE(out, [&](std::int64_t r, std::int64_t c) {
            return formula(layer, x, r, routing, 2)[static_cast<std::size_t>(c)];
        });
    }

    void moreRowsThanOnePassHoldsAreAllComputed() {
        const Layer layer(3, 8, 9, DType::kBF16);
        const Rows x = Rows::random(4099, 8, 1);
        const Routing routing = Routing::random(4099, 2, 3, 2);
        const Rows out = run(layer, x, routing, 2, 2);
        LONGVIEW_COMPARE(out, [&](std::int64_t r, std::int64_t c) {
            return formula(layer, x, r, routing, 2)[static_cast<std::size_t>(c)];
        });
    }

    void nanStaysInItsRow() {
        const Layer layer(3, 20, 12, DType::kBF16);
        Rows x = Rows::random(9, 20, 1);
        x.at(4, 19) = NAN;
        const Rows out = run(layer, x, Routing::random(9, 2, 3, 2), 2, 1);
        for (std::int64_t r = 0; r < 9; ++r)
            for (std::int64_t c = 0; c < 20; ++c) QCOMPARE(std::isnan(out.at(r, c)), r == 4);
    }

    void foreignExpertIsRefused() {
        const Layer layer(3, 8, 8, DType::kF32);
        const Rows x = Rows::random(2, 8, 1);
        for (const std::int32_t bad : {-1, 3}) {
            Routing routing = Routing::random(2, 2, 3, 2);
            routing.ids[3] = bad;
            LONGVIEW_THROWS(run(layer, x, routing, 2, 1), Category::kBug);
        }
    }

    void unequalExpertsAreRefused() {
        Layer layer(2, 8, 8, DType::kF32);
        const Weights small(8, 7, DType::kF32, 1);
        layer.views[1].w2 = small.view();
        const Rows x = Rows::random(2, 8, 1);
        LONGVIEW_THROWS(run(layer, x, Routing::random(2, 2, 2, 2), 2, 1), Category::kBug);
    }

    void routingMatchesFormula_data() {
        QTest::addColumn<int>("rows");
        QTest::addColumn<int>("experts");
        QTest::addColumn<int>("top_k");
        QTest::addColumn<int>("hidden");
        QTest::newRow("no rows") << 0 << 4 << 2 << 16;
        QTest::newRow("one row") << 1 << 32 << 2 << 64;
        QTest::newRow("one expert") << 3 << 1 << 1 << 5;
        QTest::newRow("all experts") << 7 << 5 << 5 << 33;
        QTest::newRow("many rows") << 389 << 32 << 2 << 40;
        QTest::newRow("more experts than a piece") << 200 << 131 << 4 << 24;
    }
    void routingMatchesFormula() {
        QFETCH(int, rows);
        QFETCH(int, experts);
        QFETCH(int, top_k);
        QFETCH(int, hidden);
        const Rows x = Rows::random(rows, hidden, 1), gain = Rows::random(1, hidden, 2);
        const Weights gate(experts, hidden, DType::kF32, 3);
        constexpr float kEps = 1e-5F;
        Rows normed(rows, hidden);
        Routing actual(rows, top_k);
        RouteParams p;
        p.x = x.view();
        p.gain = gain.row(0);
        p.eps = kEps;
        p.normed = normed.matrix();
        p.gate = gate.view();
        p.top_k = top_k;
        p.ids = actual.ids.data();
        p.weights = actual.weights.data();
        ThreadPool pool(2);
        cpu::Context context(pool);
        cpu::route(context, p);

        std::vector<std::vector<double>> v;
        for (std::int64_t r = 0; r < rows; ++r) {
            double squares = 0.0;
            for (std::int64_t c = 0; c < hidden; ++c) squares += std::pow(x.at(r, c), 2);
            const double scale = 1.0 / std::sqrt(squares / hidden + static_cast<double>(kEps));
            v.emplace_back();
            for (std::int64_t c = 0; c < hidden; ++c)
                v.back().push_back(gain.at(0, c) * x.at(r, c) * scale);
        }
        LONGVIEW_COMPARE(normed, [&](std::int64_t r, std::int64_t c) {
            const double y = v[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)];
            return Expected{y, (0.5 * hidden + 8) * kEpsilon * std::abs(y)};
        });
        for (std::int64_t r = 0; r < rows; ++r) {
            std::vector<double> logits;
            double error = 0.0;  // of the worst logit
            for (std::int64_t e = 0; e < experts; ++e) {
                double sum = 0.0, sizes = 0.0;
                for (std::int64_t c = 0; c < hidden; ++c) {
                    const double term =
                        v[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)] * gate.at(e, c);
                    sum += term;
                    sizes += std::abs(term);
                }
                logits.push_back(sum);
                error = std::max(error, (2.0 * hidden + 16) * kEpsilon * sizes);
            }
            std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
                return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
            });
            double total = 0.0;
            for (int i = 0; i < top_k; ++i)
                total +=
                    std::exp(logits[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])]);
            for (int i = 0; i < top_k; ++i) {
                const auto at = static_cast<std::size_t>(r * top_k + i);
                const auto id = static_cast<std::size_t>(actual.ids[at]);
                const auto best = static_cast<std::size_t>(order[static_cast<std::size_t>(i)]);
                QVERIFY(id < logits.size());
                // Another id than the formula's only where their logits cannot be told apart.
                QVERIFY(id == best || std::abs(logits[id] - logits[best]) <= 2 * error);
                const double weight = std::exp(logits[id]) / total;
                QVERIFY(std::abs(actual.weights[at] - weight) <= weight * (4 * error + 1e-6));
            }
        }
    }

    void routingIsTheSameBitsAloneAndTogether() {
        const Rows x = Rows::random(130, 50, 1), gain = Rows::random(1, 50, 2);
        const Weights gate(32, 50, DType::kF32, 3);
        const auto route = [&](int threads, std::int64_t first, std::int64_t rows) {
            Routing routing(rows, 2);
            Rows normed(rows, 50);
            RouteParams p;
            p.x = x.view().slice(first, rows);
            p.gain = gain.row(0);
            p.normed = normed.matrix();
            p.gate = gate.view();
            p.top_k = 2;
            p.ids = routing.ids.data();
            p.weights = routing.weights.data();
            ThreadPool pool(threads);
            cpu::Context context(pool);
            cpu::route(context, p);
            return routing;
        };
        const Routing whole = route(1, 0, 130);
        for (const int threads : {2, 3}) {
            QCOMPARE(route(threads, 0, 130).ids, whole.ids);
            QCOMPARE(route(threads, 0, 130).weights, whole.weights);
        }
        for (std::int64_t r = 0; r < 130; ++r) {
            const Routing one = route(1, r, 1);
            for (std::size_t i = 0; i < 2; ++i) {
                QCOMPARE(one.ids[i], whole.ids[static_cast<std::size_t>(2 * r) + i]);
                QCOMPARE(one.weights[i], whole.weights[static_cast<std::size_t>(2 * r) + i]);
            }
        }
    }

    void tiesGoToTheLowerIndexAndNanGivesNanWeights() {
        Rows x(3, 4), normed(3, 4), gain(1, 4);
        Weights gate(6, 4, DType::kF32, 1);
        const float logits[6] = {1, 3, 2, 3, 3, 2};
        for (std::size_t e = 0; e < 6; ++e)
            for (std::size_t c = 0; c < 4; ++c) gate.set(4 * e + c, c == 0 ? logits[e] : 0.0F);
        for (std::int64_t c = 0; c < 4; ++c) {
            gain.at(0, c) = 1.0F;
            x.at(0, c) = c == 0 ? 1.0F : 0.0F;
            x.at(1, c) = 0.0F;  // all logits equal
            x.at(2, c) = NAN;
        }
        Routing routing(3, 4);
        RouteParams p;
        p.x = x.view();
        p.gain = gain.row(0);
        p.eps = 1e-5F;
        p.normed = normed.matrix();
        p.gate = gate.view();
        p.top_k = 4;
        p.ids = routing.ids.data();
        p.weights = routing.weights.data();
        ThreadPool pool(1);
        cpu::Context context(pool);
        cpu::route(context, p);
        QCOMPARE((std::vector<std::int32_t>(routing.ids.begin(), routing.ids.begin() + 8)),
                 (std::vector<std::int32_t>{1, 3, 4, 2, 0, 1, 2, 3}));
        QCOMPARE(routing.weights[0], routing.weights[2]);
        for (std::size_t i = 4; i < 8; ++i) QCOMPARE(routing.weights[i], 0.25F);
        for (std::size_t i = 8; i < 12; ++i) {
            QVERIFY(std::isnan(routing.weights[i]));
            QVERIFY(routing.ids[i] >= 0 && routing.ids[i] < 6);
        }
    }

    void impossibleTopKIsRefused() {
        const Rows x = Rows::random(1, 4, 1);
        Rows normed(1, 4);
        const Weights gate(2, 4, DType::kF32, 2);
        Routing routing(1, 40);
        RouteParams p;
        p.x = x.view();
        p.gain = x.row(0);
        p.normed = normed.matrix();
        p.gate = gate.view();
        p.ids = routing.ids.data();
        p.weights = routing.weights.data();
        ThreadPool pool(1);
        cpu::Context context(pool);
        for (const int top_k : {0, 3, 33}) {
            p.top_k = top_k;
            LONGVIEW_THROWS(cpu::route(context, p), Category::kBug);
        }
    }

    void raisedFlagStopsTheOperator() {
        const Layer layer(3, 16, 16, DType::kF32);
        const Rows x = Rows::random(50, 16, 1);
        Rows out(50, 16);
        const Routing routing = Routing::random(50, 2, 3, 2);
        ThreadPool pool(2);
        CancelFlag flag;
        flag.raise();
        pool.set_cancel_flag(&flag);
        cpu::Context context(pool);
        ExpertsParams p;
        p.x = x.view();
        p.top_k = 2;
        p.ids = routing.ids.data();
        p.weights = routing.weights.data();
        p.experts = layer.views;
        p.out = out.matrix();
        LONGVIEW_THROWS(cpu::experts(context, p), Category::kCancelled);
    }
};

LONGVIEW_KERNEL_TEST_MAIN(ExpertsTest)
#include "experts_test.moc"

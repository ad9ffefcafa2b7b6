// The vision tower's operators against model-spec 7.4 and 7.5 in float64.
#include <QTest>

#include <cmath>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/kernels/attention_check.h"
#include "tests/kernels/instruction_sets.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::testing;

namespace {

struct Attention {
    std::int64_t tiles;
    std::int64_t tokens;
    int heads;
    int head_dim;
    std::vector<float> q, k, v;

    Attention(std::int64_t n, std::int64_t rows, int h, int d)
        : tiles(n), tokens(rows), heads(h), head_dim(d) {
        Numbers numbers(static_cast<std::uint64_t>(rows * 10 + d));
        q = numbers.many(n * rows * h * d, 4.0F);
        k = numbers.many(n * rows * h * d, 2.0F);
        v = numbers.many(n * rows * h * d);
    }
    float scale() const { return 1.0F / std::sqrt(static_cast<float>(head_dim)); }
};

std::vector<float> run(const Attention& a, int threads, bool* intact = nullptr) {
    ThreadPool pool(threads);
    cpu::Context context(pool);
    const std::int64_t rows = a.tiles * a.tokens;
    const std::int64_t width = std::int64_t{a.heads} * a.head_dim;
    GuardedRows q(rows, width, a.q), k(rows, width, a.k), v(rows, width, a.v), out(rows, width);
    VitAttentionParams p;
    p.q = q.view();
    p.k = k.view();
    p.v = v.view();
    p.num_tiles = a.tiles;
    p.tokens = a.tokens;
    p.heads = a.heads;
    p.scale = a.scale();
    p.out = out.view();
    cpu::vit_attention(context, p);
    if (intact != nullptr) *intact = q.intact() && k.intact() && v.intact() && out.intact();
    return out.values();
}

/// softmax(scale q k^T) v within each tile; tolerance as in softmax_attention_test.
QString misses_of(const Attention& a, const std::vector<float>& out) {
    std::vector<double> expected, tolerance;
    const std::int64_t width = std::int64_t{a.heads} * a.head_dim;
    for (std::int64_t row = 0; row < a.tiles * a.tokens; ++row)
        for (int head = 0; head < a.heads; ++head) {
            const std::int64_t col = std::int64_t{head} * a.head_dim;
            const std::int64_t first = row / a.tokens * a.tokens;
            std::vector<double> scores;
            double largest_size = 0.0;
            for (std::int64_t t = first; t < first + a.tokens; ++t) {
                double sum = 0.0, size = 0.0;
                for (int i = 0; i < a.head_dim; ++i) {
                    const double product =
                        static_cast<double>(a.scale()) *
                        static_cast<double>(a.q[static_cast<std::size_t>(row * width + col + i)]) *
                        static_cast<double>(a.k[static_cast<std::size_t>(t * width + col + i)]);
                    sum += product;
                    size += std::abs(product);
                }
                scores.push_back(sum);
                largest_size = std::max(largest_size, size);
            }
            const double largest = *std::max_element(scores.begin(), scores.end());
            double total = 0.0;
            for (double& s : scores) total += s = std::exp(s - largest);
            for (int i = 0; i < a.head_dim; ++i) {
                double mean = 0.0, size = 0.0;
                for (std::int64_t t = 0; t < a.tokens; ++t) {
                    const double term =
                        scores[static_cast<std::size_t>(t)] / total *
                        static_cast<double>(
                            a.v[static_cast<std::size_t>((first + t) * width + col + i)]);
                    mean += term;
                    size += std::abs(term);
                }
                expected.push_back(mean);
                tolerance.push_back(size * 2.0 * kUnit *
                                        ((a.head_dim + 4.0) * largest_size + 6.0 +
                                         static_cast<double>(a.tokens + 8 * (a.tokens / 64 + 2))) +
                                    1e-37);
            }
        }
    return misses(out, expected, tolerance);
}

struct Picture {
    std::int64_t tiles = 2;
    int tile_size = 28;
    int patch = 14;
    std::int64_t hidden = 10;
    DType dtype = DType::kF32;
    std::vector<std::uint8_t> pixels;
    std::vector<float> weight, class_embedding, positions, gain, bias;

    void fill() {
        Numbers numbers(static_cast<std::uint64_t>(tile_size));
        const std::int64_t side = tile_size / patch;
        for (std::int64_t i = 0; i < tiles * tile_size * tile_size * 3; ++i)
            pixels.push_back(static_cast<std::uint8_t>((numbers.next() + 1.0F) * 127.9F));
        weight = numbers.many(hidden * 3 * patch * patch, 0.1F);
        for (float& x : weight) x = bf16_value(bf16_nearest(x));
        class_embedding = numbers.many(hidden);
        positions = numbers.many((side * side + 1) * hidden);
        gain = numbers.many(hidden);
        bias = numbers.many(hidden);
    }
};

constexpr float kMean[3] = {0.48145466F, 0.4578275F, 0.40821073F};
constexpr float kStd[3] = {0.26862954F, 0.26130258F, 0.27577711F};
constexpr float kEps = 1e-5F;

std::vector<float> run(const Picture& picture, int threads, bool* intact = nullptr) {
    ThreadPool pool(threads);
    cpu::Context context(pool);
    const std::int64_t side = picture.tile_size / picture.patch;
    GuardedRows out(picture.tiles * (side * side + 1), picture.hidden);
    std::vector<std::uint16_t> halves;
    for (const float x : picture.weight) halves.push_back(bf16_nearest(x));
    PatchEmbedParams p;
    p.tiles = picture.pixels.data();
    p.num_tiles = picture.tiles;
    p.tile_size = picture.tile_size;
    p.patch_size = picture.patch;
    std::copy_n(kMean, 3, p.mean);
    std::copy_n(kStd, 3, p.std);
    p.weight.data = picture.dtype == DType::kF32 ? static_cast<const void*>(picture.weight.data())
                                                 : static_cast<const void*>(halves.data());
    p.weight.dtype = picture.dtype;
    p.weight.rows = picture.hidden;
    p.weight.cols = std::int64_t{3} * picture.patch * picture.patch;
    p.class_embedding = picture.class_embedding.data();
    p.positions = picture.positions.data();
    p.gain = picture.gain.data();
    p.bias = picture.bias.data();
    p.eps = kEps;
    p.out = out.view();
    cpu::patch_embed(context, p);
    if (intact != nullptr) *intact = out.intact();
    return out.values();
}

/// A row before its norm, and the sum of absolute values that its errors are relative to.
void embedding_row(const Picture& p, std::int64_t tile, std::int64_t row, std::vector<double>* x,
                   std::vector<double>* size) {
    const std::int64_t side = p.tile_size / p.patch;
    for (std::int64_t h = 0; h < p.hidden; ++h) {
        double sum = static_cast<double>(p.class_embedding[static_cast<std::size_t>(h)]);
        double magnitude = std::abs(sum);
        if (row > 0) {
            sum = magnitude = 0.0;
            for (std::int64_t c = 0; c < 3; ++c)
                for (std::int64_t y = 0; y < p.patch; ++y)
                    for (std::int64_t column = 0; column < p.patch; ++column) {
                        const std::int64_t py = (row - 1) / side * p.patch + y;
                        const std::int64_t px = (row - 1) % side * p.patch + column;
                        const std::uint8_t pixel = p.pixels[static_cast<std::size_t>(
                            ((tile * p.tile_size + py) * p.tile_size + px) * 3 + c)];
                        const double value = (pixel / 255.0 - static_cast<double>(kMean[c])) /
                                             static_cast<double>(kStd[c]);
                        const double w = static_cast<double>(p.weight[static_cast<std::size_t>(
                            ((h * 3 + c) * p.patch + y) * p.patch + column)]);
                        sum += w * value;
                        magnitude += std::abs(w * value);
                    }
        }
        const double position =
            static_cast<double>(p.positions[static_cast<std::size_t>(row * p.hidden + h)]);
        x->push_back(sum + position);
        size->push_back(magnitude + std::abs(position));
    }
}

/// A sum of k products is off by k + 2 roundings of its size; the norm divides by the deviation
/// and adds a few more, of values up to the largest in the row.
QString misses_of(const Picture& p, const std::vector<float>& out) {
    std::vector<double> expected, tolerance;
    const std::int64_t side = p.tile_size / p.patch;
    const double terms = 3.0 * p.patch * p.patch + 4.0;
    for (std::int64_t tile = 0; tile < p.tiles; ++tile)
        for (std::int64_t row = 0; row <= side * side; ++row) {
            std::vector<double> x, size;
            embedding_row(p, tile, row, &x, &size);
            double mean = 0.0, variance = 0.0, largest = 0.0;
            for (const double value : x) mean += value / static_cast<double>(p.hidden);
            for (const double value : x)
                variance += (value - mean) * (value - mean) / static_cast<double>(p.hidden);
            for (const double value : size) largest = std::max(largest, value);
            const double deviation = std::sqrt(variance + static_cast<double>(kEps));
            const double error =
                (terms + 2.0 * static_cast<double>(p.hidden) + 8.0) * kUnit * largest / deviation;
            for (std::size_t h = 0; h < x.size(); ++h) {
                const double normed = (x[h] - mean) / deviation;
                const double gain = static_cast<double>(p.gain[h]);
                const double bias = static_cast<double>(p.bias[h]);
                expected.push_back(gain * normed + bias);
                tolerance.push_back(std::abs(gain) * error * (2.0 + 2.0 * std::abs(normed)) +
                                    4.0 * kUnit * std::abs(bias));
            }
        }
    return misses(out, expected, tolerance);
}

}  // namespace

class VitTest : public QObject {
    Q_OBJECT

  private slots:
    void attentionMatchesTheFormula_data() {
        QTest::addColumn<int>("tiles");
        QTest::addColumn<int>("tokens");
        QTest::addColumn<int>("heads");
        QTest::addColumn<int>("head_dim");
        for (const int tokens : {1, 2, 3, 7, 61, 63, 64, 65, 96, 97, 127, 128, 129, 145, 577})
            QTest::addRow("%d tokens", tokens) << (tokens > 200 ? 1 : 2) << tokens << 2 << 8;
        for (const int dim : {1, 5, 13, 64, 80})
            QTest::addRow("head_dim %d", dim) << 3 << 37 << 2 << dim;
    }
    void attentionMatchesTheFormula() {
        QFETCH(int, tiles);
        QFETCH(int, tokens);
        QFETCH(int, heads);
        QFETCH(int, head_dim);
        const Attention a(tiles, tokens, heads, head_dim);
        bool intact = false;
        const std::vector<float> out = run(a, 2, &intact);
        QVERIFY(intact);
        const QString miss = misses_of(a, out);
        QVERIFY2(miss.isEmpty(), qPrintable(miss));
    }

    void aTileDoesNotSeeTheOthers() {
        const Attention both(2, 77, 2, 16);
        Attention second(1, 77, 2, 16);
        const std::ptrdiff_t half = 77 * 32;
        second.q.assign(both.q.begin() + half, both.q.end());
        second.k.assign(both.k.begin() + half, both.k.end());
        second.v.assign(both.v.begin() + half, both.v.end());
        const std::vector<float> out = run(both, 1);
        QVERIFY(same_bits({out.begin() + half, out.end()}, run(second, 1)));
    }

    void attentionBitsDoNotDependOnThreads() {
        const Attention a(3, 145, 2, 24);
        const std::vector<float> one = run(a, 1);
        for (const int threads : {2, 3, 5}) QVERIFY(same_bits(one, run(a, threads)));
    }

    void attentionMatchesTheFormulaOnEveryInstructionSet() {
        on_each_instruction_set([](const char* name) {
            const Attention a(2, 145, 2, 20);
            const QString miss = misses_of(a, run(a, 2));
            QVERIFY2(miss.isEmpty(), qPrintable(name + (": " + miss)));
        });
    }

    void patchesMatchTheFormula_data() {
        QTest::addColumn<int>("tile_size");
        QTest::addColumn<int>("patch");
        QTest::addColumn<int>("hidden");
        QTest::newRow("two by two") << 28 << 14 << 24;
        QTest::newRow("one patch") << 14 << 14 << 7;
        QTest::newRow("five by five of three") << 15 << 3 << 33;
        QTest::newRow("pixels") << 9 << 1 << 16;
    }
    void patchesMatchTheFormula() {
        QFETCH(int, tile_size);
        QFETCH(int, patch);
        QFETCH(int, hidden);
        for (const DType dtype : {DType::kF32, DType::kBF16}) {
            Picture p;
            p.tile_size = tile_size;
            p.patch = patch;
            p.hidden = hidden;
            p.dtype = dtype;
            p.fill();
            bool intact = false;
            const std::vector<float> out = run(p, 2, &intact);
            QVERIFY(intact);
            const QString miss = misses_of(p, out);
            QVERIFY2(miss.isEmpty(), qPrintable(miss));
            for (const int threads : {1, 3}) QVERIFY(same_bits(out, run(p, threads)));
        }
    }

    void doesNothingForZeroTiles() {
        Picture p;
        p.tiles = 0;
        p.fill();
        QVERIFY(run(p, 1).empty());
        QVERIFY(run(Attention(0, 5, 2, 8), 1).empty());
    }

    void refusesBrokenShapes() {
        Picture p;
        p.tile_size = 29;  // not whole patches of 14
        p.fill();
        try {
            run(p, 1);
            QFAIL("a tile of two patches and a pixel was accepted");
        } catch (const Error& e) {
            QCOMPARE(e.category(), Category::kBug);
        }
    }
};

QTEST_GUILESS_MAIN(VitTest)
#include "vit_test.moc"

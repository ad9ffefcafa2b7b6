#include "llm/engine/prefix_cache.h"

#include <QtTest>
#include <memory>
#include <numeric>

#include "kernels/runtime/thread_pool.h"

using namespace longview;
using namespace longview::llm;

class PrefixCacheTest : public QObject {
    Q_OBJECT

    ThreadPool pool_{1};
    std::unique_ptr<kernels::Backend> backend_ = kernels::make_cpu_backend(pool_);
    StateLayout layout_{.lightning_layers = 1,
                        .softmax_layers = 1,
                        .heads = 1,
                        .head_dim = 8,
                        .kv_heads = 1,
                        .page_tokens = 16};

    SequenceState state(std::int64_t position) {
        SequenceState s(*backend_, layout_);
        s.prepare(position);
        s.advance(position);
        return s;
    }
    static std::shared_ptr<const PositionKeys> keys(std::size_t n, std::uint64_t first = 0) {
        PositionKeys k(n);
        std::iota(k.begin(), k.end(), first);
        return std::make_shared<const PositionKeys>(std::move(k));
    }

  private slots:
    void findsTheLongestBeginning() {
        PrefixCache cache(1 << 20);
        cache.insert(keys(100), state(10));
        cache.insert(keys(100), state(40));
        cache.insert(keys(100, 7), state(60));
        const auto found = cache.find(*keys(100));
        QVERIFY(found.has_value());
        QCOMPARE(found->position(), std::int64_t{40});
        QVERIFY(!cache.find(*keys(100, 1)).has_value());
    }
    void leavesAtLeastOnePositionToRead() {
        PrefixCache cache(1 << 20);
        cache.insert(keys(100), state(40));
        QVERIFY(!cache.find(*keys(40)).has_value());
        QVERIFY(cache.find(*keys(41)).has_value());
    }
    void comparesEveryPosition() {
        PrefixCache cache(1 << 20);
        cache.insert(keys(100), state(40));
        PositionKeys other = *keys(100);
        other[39] ^= std::uint64_t{1} << 63;
        QVERIFY(!cache.find(other).has_value());
    }
    void dropsTheLeastRecentlyUsedBeyondItsBudget() {
        const std::uint64_t each = layout_.lightning_bytes() + layout_.page_bytes();
        PrefixCache cache(3 * each);
        for (std::uint64_t i = 0; i < 3; ++i) cache.insert(keys(12, 1000 * i), state(10));
        QVERIFY(cache.find(*keys(12, 0)).has_value());  // now the most recent
        cache.insert(keys(12, 9000), state(10));
        QVERIFY(cache.bytes() <= 3 * each);
        QVERIFY(cache.find(*keys(12, 0)).has_value());
        QVERIFY(!cache.find(*keys(12, 1000)).has_value());
        QVERIFY(cache.find(*keys(12, 2000)).has_value());
    }
    void sharedPagesCountOnce() {
        PrefixCache cache(std::uint64_t{1} << 30);
        const SequenceState trunk = state(160);
        cache.insert(keys(200), trunk);
        const std::uint64_t one = cache.bytes();
        cache.insert(keys(200), trunk.branch_at(80));
        QCOMPARE(cache.bytes(), one + layout_.lightning_bytes());
    }
    void theSameBeginningIsKeptOnce() {
        PrefixCache cache(1 << 20);
        cache.insert(keys(100), state(40));
        const std::uint64_t one = cache.bytes();
        cache.insert(keys(50), state(40));
        QCOMPARE(cache.bytes(), one);
    }
};

QTEST_GUILESS_MAIN(PrefixCacheTest)
#include "prefix_cache_test.moc"

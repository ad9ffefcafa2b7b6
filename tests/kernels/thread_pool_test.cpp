// The thread pool: every item once, errors and cancelling.
#include <QtTest>
#include <atomic>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/cancel.h"
#include "kernels/runtime/thread_pool.h"
#include "tests/kernels/reference.h"

using namespace longview;

class ThreadPoolTest : public QObject {
    Q_OBJECT

  private slots:
    void everyItemIsDoneOnce_data() {
        QTest::addColumn<int>("threads");
        for (const int threads : {1, 2, 3, 8}) QTest::addRow("%d threads", threads) << threads;
    }
    void everyItemIsDoneOnce() {
        QFETCH(int, threads);
        ThreadPool pool(threads);
        QCOMPARE(pool.size(), threads);
        for (const std::int64_t count : {0, 1, 2, 7, 100, 1001}) {
            for (const std::int64_t grain : {0, 1, 3, 100, 5000}) {
                std::vector<std::atomic<int>> times(static_cast<std::size_t>(count));
                std::atomic<bool> bounds_kept{true};
                pool.parallel_for(count, grain,
                                  [&](std::int64_t begin, std::int64_t end, int thread) {
                                      if (begin < 0 || end > count || begin >= end ||
                                          end - begin > std::max<std::int64_t>(grain, 1) ||
                                          thread < 0 || thread >= threads) {
                                          bounds_kept = false;
                                          return;
                                      }
                                      for (std::int64_t i = begin; i < end; ++i)
                                          ++times[static_cast<std::size_t>(i)];
                                  });
                QVERIFY(bounds_kept);
                for (const auto& n : times) QCOMPARE(n.load(), 1);
            }
        }
    }

    void countBelowZeroIsNothing() {
        ThreadPool pool(2);
        bool called = false;
        pool.parallel_for(-5, 1, [&](std::int64_t, std::int64_t, int) { called = true; });
        QVERIFY(!called);
    }

    void zeroThreadsMeansAllTheProcessMayUse() {
        ThreadPool pool(0);
        QVERIFY(pool.size() >= 1);
    }

    void writesOfAllThreadsAreSeenAfterwards() {
        ThreadPool pool(3);
        std::vector<std::int64_t> values(10000);
        for (std::int64_t round = 1; round <= 200; ++round) {
            pool.parallel_for(10000, 64, [&](std::int64_t begin, std::int64_t end, int) {
                for (std::int64_t i = begin; i < end; ++i)
                    values[static_cast<std::size_t>(i)] += i * round;
            });
        }
        for (std::int64_t i = 0; i < 10000; ++i)
            QCOMPARE(values[static_cast<std::size_t>(i)], i * 200 * 201 / 2);
    }

    void anExceptionReachesTheCallerAndThePoolStaysUsable() {
        ThreadPool pool(3);
        for (int round = 0; round < 20; ++round) {
            const std::int64_t bad = round * 37 % 500;
            bool caught = false;
            try {
                pool.parallel_for(500, 1, [&](std::int64_t begin, std::int64_t, int) {
                    if (begin == bad) throw std::runtime_error("piece " + std::to_string(bad));
                });
            } catch (const std::runtime_error& e) {
                caught = std::string(e.what()) == "piece " + std::to_string(bad);
            }
            QVERIFY(caught);
            std::atomic<std::int64_t> done{0};
            pool.parallel_for(
                100, 7, [&](std::int64_t begin, std::int64_t end, int) { done += end - begin; });
            QCOMPARE(done.load(), 100);
        }
    }

    void whenAllPiecesThrowOneExceptionArrives() {
        ThreadPool pool(3);
        bool caught = false;
        try {
            pool.parallel_for(100, 1, [](std::int64_t, std::int64_t, int) {
                throw std::runtime_error("every piece");
            });
        } catch (const std::runtime_error&) {
            caught = true;
        }
        QVERIFY(caught);
    }

    void aRaisedFlagSkipsEveryPiece() {
        ThreadPool pool(2);
        CancelFlag flag;
        pool.set_cancel_flag(&flag);
        flag.raise();
        std::atomic<int> pieces{0};
        LONGVIEW_THROWS(
            pool.parallel_for(100, 1, [&](std::int64_t, std::int64_t, int) { ++pieces; }),
            Category::kCancelled);
        QCOMPARE(pieces.load(), 0);
    }

    void aFlagRaisedMeanwhileSkipsTheRest() {
        ThreadPool pool(2);
        CancelFlag flag;
        pool.set_cancel_flag(&flag);
        std::atomic<int> pieces{0};
        LONGVIEW_THROWS(pool.parallel_for(100000, 1,
                                          [&](std::int64_t, std::int64_t, int) {
                                              if (++pieces == 10) flag.raise();
                                          }),
                        Category::kCancelled);
        QVERIFY(pieces.load() >= 10);
        QVERIFY(pieces.load() < 100000);
    }

    void aClearedFlagLetsWorkThrough() {
        ThreadPool pool(2);
        CancelFlag flag;
        flag.raise();
        pool.set_cancel_flag(&flag);
        flag.clear();
        std::atomic<int> pieces{0};
        pool.parallel_for(100, 1, [&](std::int64_t, std::int64_t, int) { ++pieces; });
        QCOMPARE(pieces.load(), 100);
        flag.raise();
        pool.set_cancel_flag(nullptr);
        pool.parallel_for(100, 1, [&](std::int64_t, std::int64_t, int) { ++pieces; });
        QCOMPARE(pieces.load(), 200);
    }

    void poolsEndWhetherUsedOrNot() {
        for (int i = 0; i < 50; ++i) {
            ThreadPool pool(4);
            std::atomic<int> pieces{0};
            if (i % 2 == 0) {
                pool.parallel_for(8, 1, [&](std::int64_t, std::int64_t, int) { ++pieces; });
                QCOMPARE(pieces.load(), 8);
            }
        }
    }
};

QTEST_GUILESS_MAIN(ThreadPoolTest)
#include "thread_pool_test.moc"

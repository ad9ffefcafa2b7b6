// Tables of rows and conversion to floats: exact, so compared without tolerance.
#include <QtTest>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/cpu/ops.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::test;

class EmbeddingTest : public QObject {
    Q_OBJECT

  private slots:
    void embedTakesTheRowsOfTheIds_data() {
        QTest::addColumn<int>("dtype");
        QTest::addColumn<int>("cols");
        for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
            for (const int cols : {1, 7, 8, 9, 16, 17, 255})
                QTest::addRow("%s, %d columns", dtype_name(dtype), cols)
                    << static_cast<int>(dtype) << cols;
    }
    void embedTakesTheRowsOfTheIds() {
        QFETCH(int, dtype);
        QFETCH(int, cols);
        const Weights table(23, cols, static_cast<DType>(dtype), 1);
        for (const int count : {0, 1, 5, 1000}) {
            std::vector<std::int32_t> ids;
            for (int i = 0; i < count; ++i) ids.push_back((i * 7 + 22) % 23);
            Rows out(count, cols);
            ThreadPool pool(2);
            cpu::Context context(pool);
            cpu::embed(context, table.view(), ids, out.matrix());
            LONGVIEW_COMPARE(out, [&](std::int64_t r, std::int64_t c) {
                return Expected{table.at(ids[static_cast<std::size_t>(r)], c), 0.0};
            });
        }
    }

    void embedRefusesIdsOutsideOfTheTable() {
        const Weights table(5, 4, DType::kBF16, 1);
        Rows out(2, 4);
        ThreadPool pool(1);
        cpu::Context context(pool);
        for (const std::int32_t bad : {-1, 5, std::numeric_limits<std::int32_t>::max(),
                                       std::numeric_limits<std::int32_t>::min()}) {
            const std::int32_t ids[] = {0, bad};
            LONGVIEW_THROWS(cpu::embed(context, table.view(), ids, out.matrix()), Category::kBug);
        }
        Rows narrow(1, 3);
        const std::int32_t id = 0;
        LONGVIEW_THROWS(cpu::embed(context, table.view(), {&id, 1}, narrow.matrix()),
                        Category::kBug);
    }

    void gatherTakesRowsOrTheFallback() {
        const Rows table = Rows::random(6, 19, 1), fallback = Rows::random(1, 19, 2);
        const std::int32_t index[] = {5, -1, 0, 0, -7, 3};
        Rows out(6, 19);
        ThreadPool pool(2);
        cpu::Context context(pool);
        cpu::gather_rows(context, table.view(), fallback.row(0), index, out.matrix());
        for (std::int64_t r = 0; r < 6; ++r)
            QVERIFY(index[r] < 0 ? out.same_row(r, fallback, 0) : out.same_row(r, table, index[r]));
        QVERIFY(out.guards_intact());
    }

    void gatherRefusesWhatItDoesNotHave() {
        const Rows table = Rows::random(6, 3, 1);
        Rows out(1, 3);
        ThreadPool pool(1);
        cpu::Context context(pool);
        const std::int32_t beyond = 6, negative = -1;
        LONGVIEW_THROWS(
            cpu::gather_rows(context, table.view(), table.row(0), {&beyond, 1}, out.matrix()),
            Category::kBug);
        LONGVIEW_THROWS(
            cpu::gather_rows(context, table.view(), nullptr, {&negative, 1}, out.matrix()),
            Category::kBug);
    }

    void everyHalfAndBfloatConvertsToItsValue_data() {
        QTest::addColumn<int>("dtype");
        QTest::newRow("F16") << static_cast<int>(DType::kF16);
        QTest::newRow("BF16") << static_cast<int>(DType::kBF16);
    }
    void everyHalfAndBfloatConvertsToItsValue() {
        QFETCH(int, dtype);
        // All 65536 patterns, from an address that is not even a multiple of the element's size.
        std::vector<std::byte> bytes(2 * 65536 + 1);
        for (std::uint32_t i = 0; i < 65536; ++i) {
            const auto pattern = static_cast<std::uint16_t>(i);
            std::memcpy(bytes.data() + 1 + 2 * i, &pattern, 2);
        }
        Rows out(1, 65536);
        ThreadPool pool(3);
        cpu::Context context(pool);
        const WeightView view = {bytes.data() + 1, static_cast<DType>(dtype), 256, 256};
        cpu::convert_to_f32(context, view, out.matrix().f32());
        QVERIFY(out.guards_intact());
        for (std::uint32_t i = 0; i < 65536; ++i) {
            const auto pattern = static_cast<std::uint16_t>(i);
            const double expected =
                view.dtype == DType::kF16 ? half_value(pattern) : bfloat_value(pattern);
            const auto actual = static_cast<double>(out.at(0, i));
            if (std::isnan(expected)) {
                QVERIFY(std::isnan(actual));
            } else {
                QCOMPARE(std::bit_cast<std::uint64_t>(actual),
                         std::bit_cast<std::uint64_t>(expected));
            }
        }
    }

    void unalignedFloatsAreCopied() {
        const std::vector<float> values = {1.5F, -2.25F, NAN, 1e-40F, 3.0F};
        std::vector<std::byte> bytes(values.size() * 4 + 1);
        std::memcpy(bytes.data() + 1, values.data(), values.size() * 4);
        std::vector<float> out(values.size());
        ThreadPool pool(1);
        cpu::Context context(pool);
        cpu::convert_to_f32(context, {bytes.data() + 1, DType::kF32, 5, 1}, out.data());
        QCOMPARE(std::memcmp(out.data(), values.data(), values.size() * 4), 0);
    }
};

LONGVIEW_KERNEL_TEST_MAIN(EmbeddingTest)
#include "embedding_test.moc"

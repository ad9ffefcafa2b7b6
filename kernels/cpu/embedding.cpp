// Rows taken from tables, and weights as floats.
#include <functional>
#include <string>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"

namespace longview::kernels::cpu {
namespace {

// Elements a thread converts at once: some 10 us of work.
constexpr std::int64_t kElementsPerPiece = 32768;

std::int64_t rows_per_piece(std::int64_t cols) {
    return 1 + kElementsPerPiece / (cols + 1);
}

[[noreturn]] void refuse_index(const char* what, std::int64_t index, std::int64_t rows) {
    throw Error(Category::kBug,
                std::string("internal error: ") + what + " " + std::to_string(index) +
                    " is outside of a table of " + std::to_string(rows) + " rows",
                {{"index", std::to_string(index)}, {"rows", std::to_string(rows)}});
}

}  // namespace

void embed(Context& c, const WeightView& table, std::span<const std::int32_t> ids, Matrix out) {
    LONGVIEW_CHECK(out.dtype == DType::kF32, "embed writes floats");
    LONGVIEW_CHECK(out.rows == static_cast<std::int64_t>(ids.size()) && out.cols == table.cols,
                   "embed writes one table row for each id");
    for (const std::int32_t id : ids)
        if (id < 0 || id >= table.rows) refuse_index("token id", id, table.rows);
    const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r)
            convert_row(table.row(ids[static_cast<std::size_t>(r)]), table.dtype, table.cols,
                        out.f32(r));
    };
    c.pool.parallel_for(out.rows, rows_per_piece(out.cols), std::ref(rows));
}

void gather_rows(Context& c, ConstMatrix table, const float* fallback,
                 std::span<const std::int32_t> index, Matrix out) {
    LONGVIEW_CHECK(table.dtype == DType::kF32 && out.dtype == DType::kF32,
                   "gather_rows takes and writes floats");
    LONGVIEW_CHECK(out.rows == static_cast<std::int64_t>(index.size()) && out.cols == table.cols,
                   "gather_rows writes one row for each index");
    for (const std::int32_t i : index) {
        if (i >= table.rows) refuse_index("row index", i, table.rows);
        LONGVIEW_CHECK(i >= 0 || fallback != nullptr, "a negative index needs a fallback row");
    }
    const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
            const std::int32_t i = index[static_cast<std::size_t>(r)];
            convert_row(i < 0 ? fallback : table.f32(i), DType::kF32, out.cols, out.f32(r));
        }
    };
    c.pool.parallel_for(out.rows, rows_per_piece(out.cols), std::ref(rows));
}

void convert_to_f32(Context& c, const WeightView& host, float* out) {
    const std::int64_t count = host.rows * host.cols;
    const auto size = static_cast<std::int64_t>(size_of(host.dtype));
    const auto* from = static_cast<const std::byte*>(host.data);
    const auto pieces = [&](std::int64_t begin, std::int64_t end, int) {
        convert_row(from + begin * size, host.dtype, end - begin, out + begin);
    };
    c.pool.parallel_for(count, kElementsPerPiece, std::ref(pieces));
}

}  // namespace longview::kernels::cpu

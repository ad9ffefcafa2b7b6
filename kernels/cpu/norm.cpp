// RMS and layer norms of rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target, as Highway demands.
#include <hwy/highway.h>

#include <cmath>
#include <functional>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

enum class Sum { kPlain, kSquares };

// Sum of (x - shift) or of its squares. Four accumulators hide the latency of an addition.
template <Sum kSum>
HWY_INLINE float sum_of(const float* x, float shift, std::size_t count) {
    const V s = hn::Set(D(), shift);
    V sums[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    std::size_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
        for (std::size_t j = 0; j < 4; ++j) {
            const V v = hn::Sub(load(x + i + j * kLanes), s);
            sums[j] = kSum == Sum::kSquares ? hn::MulAdd(v, v, sums[j]) : hn::Add(v, sums[j]);
        }
    }
    for (; i < count; i += kLanes) {
        const std::size_t left = HWY_MIN(count - i, kLanes);
        // Elements past the end must count as nothing, also after the shift.
        const V v = hn::IfThenElseZero(hn::FirstN(D(), left), hn::Sub(load_part(x + i, left), s));
        sums[0] = kSum == Sum::kSquares ? hn::MulAdd(v, v, sums[0]) : hn::Add(v, sums[0]);
    }
    const V total = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
    return hn::GetLane(hn::SumOfLanes(D(), total));
}

void rms(const float* x, const float* gain, const float* gate, float eps, std::int64_t n,
         float* out) {
    const auto count = static_cast<std::size_t>(n);
    const float mean = sum_of<Sum::kSquares>(x, 0.0F, count) / static_cast<float>(n);
    const V factor = hn::Set(D(), 1.0F / std::sqrt(mean + eps));
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        V v = hn::Mul(hn::Mul(load_part(x + i, left), factor), load_part(gain + i, left));
        if (gate != nullptr) v = hn::Mul(v, load_part(gate + i, left));
        store_part(v, out + i, left);
    }
}

void layer(const float* x, const float* gain, const float* bias, float eps, std::int64_t n,
           float* out) {
    const auto count = static_cast<std::size_t>(n);
    const float mean = sum_of<Sum::kPlain>(x, 0.0F, count) / static_cast<float>(n);
    const float variance = sum_of<Sum::kSquares>(x, mean, count) / static_cast<float>(n);
    const V shift = hn::Set(D(), mean);
    const V factor = hn::Set(D(), 1.0F / std::sqrt(variance + eps));
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        const V v = hn::Mul(hn::Sub(load_part(x + i, left), shift), factor);
        const V b = bias == nullptr ? hn::Zero(D()) : load_part(bias + i, left);
        store_part(hn::MulAdd(v, load_part(gain + i, left), b), out + i, left);
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longview::kernels::cpu {
namespace {
HWY_EXPORT(rms);
HWY_EXPORT(layer);

// Rows a thread takes at once: some 10 us of work, so that dispatch does not show.
std::int64_t rows_per_piece(std::int64_t cols) {
    return 1 + 32768 / (cols + 1);
}

void check(const ConstMatrix& x, const Matrix& y, const float* gain) {
    LONGVIEW_CHECK(x.dtype == DType::kF32 && y.dtype == DType::kF32, "norm takes float rows");
    LONGVIEW_CHECK(x.rows == y.rows && x.cols == y.cols, "norm keeps the shape");
    LONGVIEW_CHECK(gain != nullptr || x.cols == 0, "norm needs a gain");
}
}  // namespace

void rms_norm_row(const float* x, const float* gain, const float* gate, float eps, std::int64_t n,
                  float* out) {
    HWY_DYNAMIC_DISPATCH(rms)(x, gain, gate, eps, n, out);
}

void layer_norm_row(const float* x, const float* gain, const float* bias, float eps, std::int64_t n,
                    float* out) {
    HWY_DYNAMIC_DISPATCH(layer)(x, gain, bias, eps, n, out);
}

void rms_norm(Context& c, ConstMatrix x, const float* gain, float eps, Matrix y) {
    check(x, y, gain);
    const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r)
            rms_norm_row(x.f32(r), gain, nullptr, eps, x.cols, y.f32(r));
    };
    c.pool.parallel_for(x.rows, rows_per_piece(x.cols), std::ref(rows));
}

void layer_norm(Context& c, ConstMatrix x, const float* gain, const float* bias, float eps,
                Matrix y) {
    check(x, y, gain);
    const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r)
            layer_norm_row(x.f32(r), gain, bias, eps, x.cols, y.f32(r));
    };
    c.pool.parallel_for(x.rows, rows_per_piece(x.cols), std::ref(rows));
}

}  // namespace longview::kernels::cpu
#endif  // HWY_ONCE

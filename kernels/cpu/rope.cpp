// Rotary position embedding of part of each head, and storing keys and values into the cache
// (model-spec 4; Su et al. 2021, arXiv:2104.09864, NeoX halves).
//
// The angle is the float product position * theta_i with theta_i rounded to float, as in the
// references, which forms the angles the model was run with up to millions of positions; its sine
// and cosine are then taken in double.
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/kv_pages.h"
#include "kernels/cpu/ops.h"

namespace longview::kernels::cpu {
namespace {

// Rows of one piece: some 0.2 ms at 64 heads of 128.
constexpr std::int64_t kRows = 16;

/// theta^(-2i / rotary_dim) for i < rotary_dim / 2.
void frequencies(double theta, int rotary_dim, float* out) {
    for (int i = 0; i < rotary_dim / 2; ++i)
        out[i] = static_cast<float>(std::pow(theta, -2.0 * i / rotary_dim));
}

/// Sine and cosine of one position's angles.
struct Turn {
    const float* cosine;  // [half]
    const float* sine;    // [half]
    int half;
};

/// x may be y.
void rotate(const Turn& turn, const float* x, float* y) {
    for (int i = 0; i < turn.half; ++i) {
        const float low = x[i];
        const float high = x[i + turn.half];
        y[i] = low * turn.cosine[i] - high * turn.sine[i];
        y[i + turn.half] = high * turn.cosine[i] + low * turn.sine[i];
    }
}

/// Rounds to nearest, ties to even; NaN stays NaN.
std::uint16_t to_bf16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

void store_row(const float* from, int count, DType dtype, void* to) {
    if (dtype == DType::kF32) {
        std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
        return;
    }
    auto* const out = static_cast<std::uint16_t*>(to);
    for (int i = 0; i < count; ++i) out[i] = to_bf16(from[i]);
}

void check_rope(const RopeAppendParams& p) {
    check_kv(p.kv);
    const std::int64_t kv_width = static_cast<std::int64_t>(p.kv.kv_heads) * p.kv.head_dim;
    LONGVIEW_CHECK(p.position >= 0, "a position before the sequence");
    LONGVIEW_CHECK(p.rotary_dim >= 0 && p.rotary_dim % 2 == 0 && p.rotary_dim <= p.kv.head_dim,
                   "rotary_dim must be even and at most head_dim");
    LONGVIEW_CHECK(p.rotary_dim == 0 || p.theta > 0.0, "theta must be positive");
    LONGVIEW_CHECK(
        p.q.cols == static_cast<std::int64_t>(p.heads) * p.kv.head_dim && p.q.dtype == DType::kF32,
        "q must be [n, heads * head_dim] in kF32");
    LONGVIEW_CHECK(p.k.rows == p.q.rows && p.k.cols == kv_width && p.k.dtype == DType::kF32,
                   "k must be [n, kv_heads * head_dim] in kF32");
    LONGVIEW_CHECK(p.v.rows == p.q.rows && p.v.cols == kv_width && p.v.dtype == DType::kF32,
                   "v must be [n, kv_heads * head_dim] in kF32");
}

/// Turns and stores row `row` of the call. `work` has room for head_dim floats.
void append_row(const RopeAppendParams& p, const KvPages& pages, std::int64_t row, const Turn& turn,
                float* work) {
    const int dims = p.kv.head_dim;
    for (int head = 0; head < p.heads; ++head) {
        float* const q = p.q.f32(row) + static_cast<std::ptrdiff_t>(head) * dims;
        rotate(turn, q, q);
    }
    for (int head = 0; head < p.kv.kv_heads; ++head) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(head) * dims;
        const float* const k = p.k.f32(row) + at;
        rotate(turn, k, work);
        std::copy(k + p.rotary_dim, k + dims, work + p.rotary_dim);
        store_row(work, dims, p.kv.dtype, pages.key(p.position + row, head));
        store_row(p.v.f32(row) + at, dims, p.kv.dtype, pages.value(p.position + row, head));
    }
}

}  // namespace

void rope_append(Context& c, const RopeAppendParams& p) {
    if (p.q.rows == 0) return;
    check_rope(p);
    const int half = p.rotary_dim / 2;
    float* const theta = c.shared_scratch(static_cast<std::size_t>(half) + 1);
    frequencies(p.theta, p.rotary_dim, theta);
    const KvPages pages(p.kv);
    c.pool.parallel_for(p.q.rows, kRows, [&](std::int64_t begin, std::int64_t end, int thread) {
        float* const cosine = c.scratch(thread, static_cast<std::size_t>(2 * half + p.kv.head_dim));
        float* const sine = cosine + half;
        for (std::int64_t row = begin; row < end; ++row) {
            const auto position = static_cast<float>(p.position + row);
            for (int i = 0; i < half; ++i) {
                const double angle = position * theta[i];
                cosine[i] = static_cast<float>(std::cos(angle));
                sine[i] = static_cast<float>(std::sin(angle));
            }
            append_row(p, pages, row, {cosine, sine, half}, sine + half);
        }
    });
}

}  // namespace longview::kernels::cpu

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rows.cpp"
#include <hwy/foreach_target.h>
// After foreach_target, as Highway demands.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

HWY_INLINE V set(float value) {
    return hn::Set(D(), value);
}

// Both exponentials below have arguments <= 0, where nothing overflows.
HWY_INLINE V sigmoid(V x) {
    const V e = hn::Exp(D(), hn::Neg(hn::Abs(x)));  // 0 for NaN
    const V numerator = hn::IfThenElse(hn::Lt(x, hn::Zero(D())), e, set(1.0F));
    const V y = hn::Div(numerator, hn::Add(set(1.0F), e));
    return hn::IfThenElse(hn::Eq(x, x), y, x);
}

HWY_INLINE V silu(V x) {
    return hn::Mul(x, sigmoid(x));
}

// Phi(-t) = exp(-t^2 / 2) P(q) / (1 + t), q = (t - 4) / (t + 4), for t >= 0. The variable maps
// [0, 13.6], beyond which float32 holds no smaller value, to [-1, 0.55]; P is our own
// least-maximum fit of relative error 8.6e-8.
HWY_INLINE V normal_tail(V t) {
    constexpr float kP[] = {0.4720532F,      -0.0967029855F,   0.0139997341F,
                            0.0285881571F,   -0.0322030447F,   0.0180157442F,
                            -0.00494750217F, -0.000461200223F, 0.000537367247F};
    const V four = set(4.0F);
    const V q = hn::Div(hn::Sub(t, four), hn::Add(t, four));
    V p = set(kP[8]);
    for (int i = 7; i >= 0; --i) p = hn::MulAdd(p, q, set(kP[i]));
    // t^2 = high^2 + rest, where high has 12 bits and so an exact square: a rounded square would
    // cost 5e-6 at t = 13. The exponential of rest <= 0.09 is a short series.
    const hn::RebindToUnsigned<D> bits;
    const V high =
        hn::BitCast(D(), hn::And(hn::BitCast(bits, t), hn::Set(bits, std::uint32_t{0xFFFFF000})));
    const V half = set(-0.5F);
    const V rest = hn::Mul(half, hn::Mul(hn::Sub(t, high), hn::Add(t, high)));
    V series = set(1.0F / 24);
    for (const float coefficient : {1.0F / 6, 0.5F, 1.0F, 1.0F})
        series = hn::MulAdd(series, rest, set(coefficient));
    const V exact = hn::Mul(series, hn::Exp(D(), hn::Mul(half, hn::Mul(high, high))));
    return hn::Div(hn::Mul(exact, p), hn::Add(set(1.0F), t));
}

// x Phi(x), accurate relative to its own size on both sides.
HWY_INLINE V gelu(V x) {
    const V tail = normal_tail(hn::Min(hn::Abs(x), set(15.0F)));
    const V phi = hn::IfThenElse(hn::Lt(x, hn::Zero(D())), tail, hn::Sub(set(1.0F), tail));
    return hn::Mul(x, phi);
}

template <class Function>
HWY_INLINE void for_each(const float* x, const float* bias, std::int64_t n, float* out,
                         const Function& function) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; i += kLanes) {
        V v = load_part(x + i, count - i);
        if (bias != nullptr) v = hn::Add(v, load_part(bias + i, count - i));
        store_part(function(v), out + i, count - i);
    }
}

struct Identity {
    HWY_INLINE V operator()(V x) const { return x; }
};
struct Silu {
    HWY_INLINE V operator()(V x) const { return silu(x); }
};
struct Sigmoid {
    HWY_INLINE V operator()(V x) const { return sigmoid(x); }
};
struct Gelu {
    HWY_INLINE V operator()(V x) const { return gelu(x); }
};

void activate(const float* x, const float* bias, Activation activation, std::int64_t n,
              float* out) {
    switch (activation) {
        case Activation::kNone:
            return for_each(x, bias, n, out, Identity());
        case Activation::kSilu:
            return for_each(x, bias, n, out, Silu());
        case Activation::kSigmoid:
            return for_each(x, bias, n, out, Sigmoid());
        case Activation::kGelu:
            return for_each(x, bias, n, out, Gelu());
    }
}

template <class T>
void convert_from(const T* from, std::size_t count, float* out) {
    for (std::size_t i = 0; i < count; i += kLanes)
        store_part(load_part(from + i, count - i), out + i, count - i);
}

void convert(const void* from, DType dtype, std::int64_t n, float* out) {
    const auto count = static_cast<std::size_t>(n);
    switch (dtype) {
        case DType::kF32:
            std::memcpy(out, from, count * sizeof(float));
            return;
        case DType::kF16:
            return convert_from(static_cast<const hwy::float16_t*>(from), count, out);
        case DType::kBF16:
            return convert_from(static_cast<const hwy::bfloat16_t*>(from), count, out);
    }
}

void multiply(const float* a, const float* b, std::int64_t n, float* out) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        store_part(hn::Mul(load_part(a + i, left), load_part(b + i, left)), out + i, left);
    }
}

void residual(const float* x, const float* bias, const float* skip, float alpha, float beta,
              std::int64_t n, float* out) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        V v = load_part(x + i, left);
        if (bias != nullptr) v = hn::Add(v, load_part(bias + i, left));
        const V kept = hn::Mul(set(alpha), load_part(skip + i, left));
        store_part(hn::MulAdd(set(beta), v, kept), out + i, left);
    }
}

void silu_product(const float* gate, const float* up, std::int64_t n, float* out) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        const V v = hn::Mul(silu(load_part(gate + i, left)), load_part(up + i, left));
        store_part(v, out + i, left);
    }
}

void combine(const float* skip, const float* const* y, const float* weights, int terms, float alpha,
             float beta, std::int64_t n, float* out) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        V sum = hn::Zero(D());
        for (int t = 0; t < terms; ++t)
            sum = hn::MulAdd(set(weights[t]), load_part(y[t] + i, left), sum);
        const V kept = hn::Mul(set(alpha), load_part(skip + i, left));
        store_part(hn::MulAdd(set(beta), sum, kept), out + i, left);
    }
}

void exponentials(const float* x, float largest, float scale, std::int64_t n, float* out) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t left = count - i;
        const V v = hn::Mul(hn::Sub(load_part(x + i, left), set(largest)), set(scale));
        store_part(hn::Exp(D(), v), out + i, left);
    }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longview::kernels::cpu {
namespace {
HWY_EXPORT(convert);
HWY_EXPORT(multiply);
HWY_EXPORT(activate);
HWY_EXPORT(residual);
HWY_EXPORT(silu_product);
HWY_EXPORT(combine);
HWY_EXPORT(exponentials);
}  // namespace

void convert_row(const void* from, DType dtype, std::int64_t n, float* out) {
    if (n > 0) HWY_DYNAMIC_DISPATCH(convert)(from, dtype, n, out);
}

void multiply_row(const float* a, const float* b, std::int64_t n, float* out) {
    HWY_DYNAMIC_DISPATCH(multiply)(a, b, n, out);
}

void activate_row(const float* x, const float* bias, Activation activation, std::int64_t n,
                  float* out) {
    HWY_DYNAMIC_DISPATCH(activate)(x, bias, activation, n, out);
}

void residual_row(const float* x, const float* bias, const float* skip, float alpha, float beta,
                  std::int64_t n, float* out) {
    HWY_DYNAMIC_DISPATCH(residual)(x, bias, skip, alpha, beta, n, out);
}

void silu_product_row(const float* gate, const float* up, std::int64_t n, float* out) {
    HWY_DYNAMIC_DISPATCH(silu_product)(gate, up, n, out);
}

void combine_row(const float* skip, const float* const* y, const float* weights, int count,
                 float alpha, float beta, std::int64_t n, float* out) {
    HWY_DYNAMIC_DISPATCH(combine)(skip, y, weights, count, alpha, beta, n, out);
}

void exp_row(const float* x, float largest, float scale, std::int64_t n, float* out) {
    HWY_DYNAMIC_DISPATCH(exponentials)(x, largest, scale, n, out);
}

}  // namespace longview::kernels::cpu
#endif  // HWY_ONCE

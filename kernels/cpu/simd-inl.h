// Loads and stores that the vectorised files of this folder share; included once per instruction
// set by Highway's foreach_target. A part of a vector is filled with zeros, so that the last
// elements of a row are computed by the same instructions as all others.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <hwy/highway.h>

#if defined(LONGVIEW_KERNELS_CPU_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGVIEW_KERNELS_CPU_SIMD_INL_H
#undef LONGVIEW_KERNELS_CPU_SIMD_INL_H
#else
#define LONGVIEW_KERNELS_CPU_SIMD_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace longview::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
// Scalable instruction sets are switched off (CMakeLists.txt), so this is a constant.
inline constexpr std::size_t kLanes = HWY_LANES(float);

HWY_INLINE V load(const float* p) {
    return hn::LoadU(D(), p);
}
HWY_INLINE V load(const hwy::bfloat16_t* p) {
#if HWY_TARGET == HWY_AVX2
    // One byte shuffle of a broadcast load, where widening and shifting take two instructions.
    constexpr std::uint8_t kZ = 0x80;
    HWY_ALIGN static constexpr std::uint8_t kUpper[32] = {
        kZ, kZ, 0, 1, kZ, kZ, 2,  3,  kZ, kZ, 4,  5,  kZ, kZ, 6,  7,
        kZ, kZ, 8, 9, kZ, kZ, 10, 11, kZ, kZ, 12, 13, kZ, kZ, 14, 15};
    const hn::ScalableTag<std::uint8_t> bytes;
    const auto both = hn::LoadDup128(bytes, reinterpret_cast<const std::uint8_t*>(p));
    return hn::BitCast(D(), hn::TableLookupBytesOr0(both, hn::Load(bytes, kUpper)));
#else
    return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), p));
#endif
}
HWY_INLINE V load(const hwy::float16_t* p) {
#if HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM
    return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::float16_t, D>(), p));
#else
    // Without an instruction for it Highway takes infinity and NaN for numbers above 65504. The
    // bits shifted into a float are 2^-112 of the value, and exact when multiplied back.
    const hn::RebindToUnsigned<D> bits;
    const hn::Rebind<std::uint16_t, D> halves;
    const auto stored =
        hn::PromoteTo(bits, hn::LoadU(halves, reinterpret_cast<const std::uint16_t*>(p)));
    const auto sign = hn::ShiftLeft<16>(hn::And(stored, hn::Set(bits, 0x8000U)));
    const auto size = hn::ShiftLeft<13>(hn::And(stored, hn::Set(bits, 0x7FFFU)));
    const V value = hn::Mul(hn::BitCast(D(), size), hn::Set(D(), 0x1p112F));
    const V special = hn::Or(value, hn::BitCast(D(), hn::Set(bits, 0x7F800000U)));
    const V magnitude = hn::IfThenElse(hn::Ge(value, hn::Set(D(), 65536.0F)), special, value);
    return hn::Or(magnitude, hn::BitCast(D(), sign));
#endif
}

/// The first `count` of a vector's elements, the others zero.
template <class T>
HWY_INLINE V load_part(const T* p, std::size_t count) {
    if (HWY_LIKELY(count >= kLanes)) return load(p);
#if HWY_TARGET <= HWY_AVX2
    // These can leave out elements without touching their memory.
    if constexpr (std::is_same_v<T, float>) return hn::MaskedLoad(hn::FirstN(D(), count), D(), p);
#endif
    HWY_ALIGN T padded[kLanes];
    std::memset(static_cast<void*>(padded), 0, sizeof(padded));
    std::memcpy(static_cast<void*>(padded), static_cast<const void*>(p), count * sizeof(T));
    return load(padded);
}

HWY_INLINE void store_part(V v, float* p, std::size_t count) {
    if (HWY_LIKELY(count >= kLanes)) {
        hn::StoreU(v, D(), p);
        return;
    }
    HWY_ALIGN float padded[kLanes];
    hn::Store(v, D(), padded);
    std::memcpy(p, padded, count * sizeof(float));
}

}  // namespace HWY_NAMESPACE
}  // namespace longview::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif

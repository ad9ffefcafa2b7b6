// Loads and stores that the vectorised files of this folder share; included once per instruction
// set by Highway's foreach_target. A part of a vector is filled with zeros, so that the last
// elements of a row are computed by the same instructions as all others.
#include <cstddef>
#include <cstdint>
#include <cstring>

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
    return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, D>(), p));
}
HWY_INLINE V load(const hwy::float16_t* p) {
    return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<hwy::float16_t, D>(), p));
}

/// The first `count` of a vector's elements, the others zero.
template <class T>
HWY_INLINE V load_part(const T* p, std::size_t count) {
    if (HWY_LIKELY(count >= kLanes)) return load(p);
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

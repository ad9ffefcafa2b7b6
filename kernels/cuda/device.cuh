// Device-side building blocks: vector loads, warp reductions, asynchronous copies, matrix
// instructions. Thin names for instructions (PTX ISA 8); layouts as the ISA gives them.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/backend.h"

namespace longview::kernels::cuda {

using bf16 = __nv_bfloat16;
using bf162 = __nv_bfloat162;

constexpr int kWarp = 32;

// ---- 16-byte memory access

/// Eight bf16 as they lie in memory.
struct alignas(16) Bf16x8 {
    bf162 pair[4];
};

// Through uint4: member by member the copy would become four accesses of 4 bytes.
__device__ inline Bf16x8 load8(const bf16* p) {
    const uint4 u = *reinterpret_cast<const uint4*>(p);
    return *reinterpret_cast<const Bf16x8*>(&u);
}
/// Read once, never written by this kernel: past L1, first to leave L2.
__device__ inline Bf16x8 load8_streaming(const bf16* p) {
    Bf16x8 v;
    auto* u = reinterpret_cast<std::uint32_t*>(&v);
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(u[0]), "=r"(u[1]), "=r"(u[2]), "=r"(u[3])
                 : "l"(p));
    return v;
}
/// load8_streaming where `wanted`, else zeros; without a branch.
__device__ inline Bf16x8 load8_streaming(const bf16* p, bool wanted) {
    Bf16x8 v;
    auto* u = reinterpret_cast<std::uint32_t*>(&v);
    asm volatile(
        "{\n\t.reg .pred wanted;\n\t"
        "setp.ne.s32 wanted, %5, 0;\n\t"
        "mov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\tmov.b32 %2, 0;\n\tmov.b32 %3, 0;\n\t"
        "@wanted ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=&r"(u[0]), "=&r"(u[1]), "=&r"(u[2]), "=&r"(u[3])
        : "l"(p), "r"(static_cast<int>(wanted)));
    return v;
}
__device__ inline void store8(bf16* p, const Bf16x8& v) {
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&v);
}
__device__ inline void unpack8(const Bf16x8& v, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 f = __bfloat1622float2(v.pair[i]);
        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}
__device__ inline Bf16x8 pack8(const float (&in)[8]) {
    Bf16x8 v;
#pragma unroll
    for (int i = 0; i < 4; ++i) v.pair[i] = __floats2bfloat162_rn(in[2 * i], in[2 * i + 1]);
    return v;
}

// ---- reductions

__device__ inline float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xFFFFFFFFU, v, offset);
    return v;
}
__device__ inline float warp_max(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFU, v, offset));
    return v;
}
/// Sum over the block, the same value in every thread. `shared` holds 32 floats; all threads of the
/// block call it, and it begins and ends with a barrier.
__device__ inline float block_sum(float v, float* shared) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = (static_cast<int>(blockDim.x) + kWarp - 1) / kWarp;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    v = lane < warps ? shared[lane] : 0.0F;
    v = warp_sum(v);
    __syncthreads();
    return v;
}

// ---- activations, as exact as fp32 allows (model-spec 3.1, 5, 7.5)

__device__ inline float sigmoid(float x) {
    return 1.0F / (1.0F + __expf(-x));
}
__device__ inline float silu(float x) {
    return x / (1.0F + __expf(-x));
}
__device__ inline float gelu(float x) {
    return 0.5F * x * (1.0F + erff(x * 0.70710678118654752F));
}
__device__ inline float activate(float x, Activation activation) {
    switch (activation) {
        case Activation::kSilu:
            return silu(x);
        case Activation::kSigmoid:
            return sigmoid(x);
        case Activation::kGelu:
            return gelu(x);
        default:
            return x;
    }
}

// ---- asynchronous copies to shared memory (sm_80)

__device__ inline std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}
/// 16 bytes; `bytes` of them are read (0 ... 16), the rest become zeros.
__device__ inline void cp_async16(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}
__device__ inline void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `kPending` of this thread's groups are unfinished.
template <int kPending>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- matrix instructions

/// Four 8x8 matrices of 16-bit values from shared memory; lane l gives the address of row l % 8 of
/// matrix l / 8. Register i of lane l then holds elements (l / 4, 2 (l % 4) ... + 1) of matrix i.
__device__ inline void ldmatrix4(std::uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/// As ldmatrix4, each matrix transposed on the way.
__device__ inline void ldmatrix4_transposed(std::uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/// c += a b, a 16x16 row-major, b 16x8 column-major, c 16x8 fp32. With g = lane / 4, t = lane % 4:
///   a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)
///   b0 (k = 2t.., n = g), b1 (k = 2t + 8.., n = g);  c[0], c[1] (g, 2t..), c[2], c[3] (g + 8,
///   2t..)
__device__ inline void mma_bf16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// Two floats as a register of two bf16, `low` in the lower half.
__device__ inline std::uint32_t pack_bf16(float low, float high) {
    const bf162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&v);
}

// ---- forms that take a shared address (lane offsets are combined by xor before the access)

__device__ inline void ldmatrix4(std::uint32_t (&r)[4], std::uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
}
__device__ inline void ldmatrix4_transposed(std::uint32_t (&r)[4], std::uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
}
__device__ inline void cp_async16(std::uint32_t shared_to, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_to), "l"(global),
                 "r"(bytes)
                 : "memory");
}
/// An 8x8 matrix of 16-bit values spread over a warp as ldmatrix leaves it, transposed.
__device__ inline std::uint32_t transpose8x8(std::uint32_t v) {
    std::uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}
/// 16 bytes to global memory where `on`, without a branch.
__device__ inline void store16_if(bool on, void* global, const uint4& v) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n"
        "@p st.global.v4.b32 [%0], {%1, %2, %3, %4};\n}" ::"l"(global),
        "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(static_cast<int>(on))
        : "memory");
}

}  // namespace longview::kernels::cuda

// Matrix instructions of a warpgroup (wgmma: compute capability 9.0, compiled as sm_90a): four
// warps multiply 64 rows at once, with operands that the tensor cores read from shared memory
// themselves. Names and layouts as PTX ISA 8 gives them. Nothing here may be instantiated where
// kHasWgmma is false.
//
// The instructions run asynchronously. Between wgmma_fence() and the wgmma_wait() that covers an
// instruction nobody may touch its registers; hold() after the wait keeps the compiler to that.
#pragma once

#include <cstdint>

namespace longview::kernels::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

/// Before the first instruction, and after writing registers it reads.
__device__ inline void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most `kPending` groups are unfinished.
template <int kPending>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// What this thread wrote to shared memory (by finished cp.async too) becomes visible to wgmma,
/// once a barrier has ordered the two.
__device__ inline void wgmma_publish() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kCount>
__device__ inline void hold(float (&r)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        asm volatile("" : "+f"(r[i][0]), "+f"(r[i][1]), "+f"(r[i][2]), "+f"(r[i][3])::"memory");
}
template <int kCount>
__device__ inline void hold(std::uint32_t (&r)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        asm volatile("" : "+r"(r[i][0]), "+r"(r[i][1]), "+r"(r[i][2]), "+r"(r[i][3])::"memory");
}

/// Descriptor of a matrix in shared memory: rows of 128 bytes whose eight 16-byte chunks are
/// permuted by the row (chunk x of row r lies at x ^ r % 8), the whole aligned to 1024 bytes.
/// Contiguous along k (64 of them a row): `address` may be advanced by multiples of 32 bytes.
/// Contiguous along n (kTransposed): further 64 columns lie `panel_bytes` on; 16 k are 2048 bytes.
__device__ inline std::uint64_t wgmma_operand(std::uint32_t address, int panel_bytes = 16) {
    constexpr std::uint64_t kEightRows = 1024 / 16;
    constexpr std::uint64_t kSwizzle128 = 1;
    return std::uint64_t{(address & 0x3FFFFU) >> 4} |
           static_cast<std::uint64_t>(panel_bytes / 16) << 16 | kEightRows << 32 |
           kSwizzle128 << 62;
}

// Operands %0 ... of the instructions below. A warp has 16 of the 64 rows; d[x] and a are laid out
// as in mma_bf16, d[x] for the columns 8 x ... + 7.
#define LONGVIEW_WGMMA_D4(d, x)                                                     \
    "+f"(d[x][0]), "+f"(d[x][1]), "+f"(d[x][2]), "+f"(d[x][3]), "+f"(d[x + 1][0]),  \
        "+f"(d[x + 1][1]), "+f"(d[x + 1][2]), "+f"(d[x + 1][3]), "+f"(d[x + 2][0]), \
        "+f"(d[x + 2][1]), "+f"(d[x + 2][2]), "+f"(d[x + 2][3]), "+f"(d[x + 3][0]), \
        "+f"(d[x + 3][1]), "+f"(d[x + 3][2]), "+f"(d[x + 3][3])
#define LONGVIEW_WGMMA_32                                                              \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
    "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LONGVIEW_WGMMA_64                                                                \
    LONGVIEW_WGMMA_32                                                                    \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

/// d = a b (or d += a b with `add`): 64x64, 16 deep, both operands in shared memory and contiguous
/// along k.
__device__ inline void wgmma_bf16(float (&d)[8][4], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %34, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LONGVIEW_WGMMA_32
        "}, %32, %33, add, 1, 1, 0, 0;\n\t}"
        : LONGVIEW_WGMMA_D4(d, 0), LONGVIEW_WGMMA_D4(d, 4)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
/// The same with a in registers; kTransposed: b is contiguous along n.
template <bool kTransposed>
__device__ inline void wgmma_bf16(float (&d)[8][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                  bool add) {
    asm volatile(
        "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %37, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" LONGVIEW_WGMMA_32
        "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38;\n\t}"
        : LONGVIEW_WGMMA_D4(d, 0), LONGVIEW_WGMMA_D4(d, 4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(kTransposed ? 1 : 0));
}
/// The same, 64x128.
template <bool kTransposed>
__device__ inline void wgmma_bf16(float (&d)[16][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                  bool add) {
    asm volatile(
        "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %69, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" LONGVIEW_WGMMA_64
        "}, {%64, %65, %66, %67}, %68, add, 1, 1, %70;\n\t}"
        : LONGVIEW_WGMMA_D4(d, 0), LONGVIEW_WGMMA_D4(d, 4), LONGVIEW_WGMMA_D4(d, 8),
          LONGVIEW_WGMMA_D4(d, 12)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
          "n"(kTransposed ? 1 : 0));
}
#undef LONGVIEW_WGMMA_D4
#undef LONGVIEW_WGMMA_32
#undef LONGVIEW_WGMMA_64

}  // namespace longview::kernels::cuda

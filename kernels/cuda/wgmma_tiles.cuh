// Hopper's asynchronous matrix instructions and what goes with them (compute capability 9.0, target
// sm_90a): wgmma, the descriptors of its operands in shared memory, mbarriers, named barriers.
// Facts from PTX ISA 8.x, chapter "Asynchronous Warpgroup Level Matrix Multiply-Accumulate".
//
// Descriptor of a matrix in shared memory, 64 bits; encode(x) = (x & 0x3FFFF) >> 4:
//   13-0   encode(start address)
//   29-16  encode(leading dimension byte offset), LBO
//   45-32  encode(stride dimension byte offset), SBO
//   51-49  base offset: 0 where the swizzle's pattern begins at multiples of 1024 bytes
//   63-62  swizzle: 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
//
// With the 128-byte swizzle a matrix consists of atoms of 8 lines of 128 bytes. Inside an atom the
// eight 16-byte chunks of a line are permuted: bits 6-4 of the address are combined with bits 9-7
// by exclusive or. The hardware does that to the final address; hence a start address may lie
// inside an atom (a multiple of 16 bytes) as long as the atoms are 1024-byte aligned. For bf16 the
// byte that belongs to an element, before that permutation, relative to the start address:
//   K-major   (trans 0)  element (mn, k):  mn % 8 * 128 + mn / 8 * SBO + k * 2       k < 64
//                        a line is one row's 64 values of k; LBO is not used (1 by convention)
//   MN-major  (trans 1)  element (mn, k):  mn % 64 * 2 + mn / 64 * LBO + k % 8 * 128 + k / 8 * SBO
//                        a line is one k's 64 values of mn
//
// The tiles here (tile_offset) hold 128 rows of 128 values as two panels of 64 columns, each row of
// a panel a line. Read along columns (Q and K, whose k is the head's dims) they are K-major with
// SBO = 1024; 16 dims further is 32 bytes further, 64 dims further the next panel. Read across rows
// (V, whose k is the keys and whose n is the dims) they are MN-major with SBO = 1024 (the next 8
// keys) and LBO = one panel (the next 64 dims); 16 keys further is 2048 bytes further.
//
// Accumulators of m64n128: warp w of the warpgroup has rows 16 w ...; with g = lane / 4, t = lane %
// 4, d[4 n + 2 half + i] is (16 w + 8 half + g, 8 n + 2 t + i). A from registers, 16 columns:
//   a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)
#pragma once

#include <cstdint>

namespace longview::kernels::cuda {

// ---- tiles

constexpr int kTileRows = 128;
constexpr int kPanelBytes = kTileRows * 128;
constexpr int kTileBytes = 2 * kPanelBytes;
constexpr int kAtomBytes = 1024;

/// Where 8 columns (16 bytes) of a row lie in a tile, which begins at a multiple of 1024 bytes.
__host__ __device__ constexpr std::uint32_t tile_offset(int row, int chunk) {
    return static_cast<std::uint32_t>(chunk / 8 * kPanelBytes + row * 128 +
                                      ((chunk ^ row) & 7) * 16);
}

__host__ __device__ constexpr std::uint64_t matrix_descriptor(std::uint32_t start,
                                                              std::uint32_t lbo,
                                                              std::uint32_t sbo) {
    return (std::uint64_t{start & 0x3FFFFU} >> 4) | (std::uint64_t{lbo & 0x3FFFFU} >> 4 << 16) |
           (std::uint64_t{sbo & 0x3FFFFU} >> 4 << 32) | (std::uint64_t{1} << 62);
}
/// Of a tile (or of rows from a multiple of 8 on) whose columns are k.
__host__ __device__ constexpr std::uint64_t columns_descriptor(std::uint32_t start) {
    return matrix_descriptor(start, 16, kAtomBytes);
}
/// Of a tile whose rows are k.
__host__ __device__ constexpr std::uint64_t rows_descriptor(std::uint32_t start) {
    return matrix_descriptor(start, kPanelBytes, kAtomBytes);
}
/// What is added to the former for the k from 16 * step on (no carry: addresses have 18 bits).
__host__ __device__ constexpr std::uint64_t columns_step(int step) {
    return static_cast<std::uint64_t>(step / 4 * kPanelBytes + step % 4 * 32) >> 4;
}
__host__ __device__ constexpr std::uint64_t rows_step(int step) {
    return static_cast<std::uint64_t>(step * 2 * kAtomBytes) >> 4;
}

// ---- matrix instructions, executed by all 128 threads of a warpgroup

// Accumulators as text and as operands; the count of other operands begins at %64.
#define LONGVIEW_D_TEXT                                                                \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define LONGVIEW_D(constraint)                                                                    \
    constraint(d[0]), constraint(d[1]), constraint(d[2]), constraint(d[3]), constraint(d[4]),     \
        constraint(d[5]), constraint(d[6]), constraint(d[7]), constraint(d[8]), constraint(d[9]), \
        constraint(d[10]), constraint(d[11]), constraint(d[12]), constraint(d[13]),               \
        constraint(d[14]), constraint(d[15]), constraint(d[16]), constraint(d[17]),               \
        constraint(d[18]), constraint(d[19]), constraint(d[20]), constraint(d[21]),               \
        constraint(d[22]), constraint(d[23]), constraint(d[24]), constraint(d[25]),               \
        constraint(d[26]), constraint(d[27]), constraint(d[28]), constraint(d[29]),               \
        constraint(d[30]), constraint(d[31]), constraint(d[32]), constraint(d[33]),               \
        constraint(d[34]), constraint(d[35]), constraint(d[36]), constraint(d[37]),               \
        constraint(d[38]), constraint(d[39]), constraint(d[40]), constraint(d[41]),               \
        constraint(d[42]), constraint(d[43]), constraint(d[44]), constraint(d[45]),               \
        constraint(d[46]), constraint(d[47]), constraint(d[48]), constraint(d[49]),               \
        constraint(d[50]), constraint(d[51]), constraint(d[52]), constraint(d[53]),               \
        constraint(d[54]), constraint(d[55]), constraint(d[56]), constraint(d[57]),               \
        constraint(d[58]), constraint(d[59]), constraint(d[60]), constraint(d[61]),               \
        constraint(d[62]), constraint(d[63])

/// Before the first instruction after registers it uses were written.
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// What was issued since the last commit is a group.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most `kPending` groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving uses of these registers across this place.
__device__ __forceinline__ void hold(float (&d)[64]) {
    asm volatile("" : LONGVIEW_D("+f")::"memory");
}
__device__ __forceinline__ void hold(std::uint32_t (&a)[8][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
        asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
}

/// d = A B or, with kAdd, d += A B: 64 x 16 times 16 x 128, both K-major in shared memory.
template <bool kAdd>
__device__ __forceinline__ void wgmma_shared(float (&d)[64], std::uint64_t a, std::uint64_t b) {
    if constexpr (kAdd)
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " LONGVIEW_D_TEXT
            "%64, %65, add, 1, 1, 0, 0;\n}"
            : LONGVIEW_D("+f")
            : "l"(a), "l"(b));
    else
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, 0, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " LONGVIEW_D_TEXT
            "%64, %65, add, 1, 1, 0, 0;\n}"
            : LONGVIEW_D("=f")
            : "l"(a), "l"(b));
}
/// d += A B: A from registers, B MN-major in shared memory.
__device__ __forceinline__ void wgmma_registers(float (&d)[64], const std::uint32_t (&a)[4],
                                                std::uint64_t b) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " LONGVIEW_D_TEXT
        "{%64, %65, %66, %67}, %68, add, 1, 1, 1;\n}"
        : LONGVIEW_D("+f")
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef LONGVIEW_D_TEXT
#undef LONGVIEW_D

/// Registers a thread of this warpgroup has from here on. All warpgroups together may not exceed
/// what the block was started with.
template <int kRegisters>
__device__ __forceinline__ void give_registers_back() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Makes what this thread wrote to shared memory with ordinary or cp.async copies (finished ones)
/// visible to matrix instructions of threads it synchronises with afterwards.
__device__ __forceinline__ void fence_for_matrices() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- barriers in shared memory

__device__ __forceinline__ void mbarrier_init(std::uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(std::uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Whether the phase of this parity is over. A new barrier is in phase 0; the one before it, of
/// parity 1, counts as over.
__device__ __forceinline__ bool mbarrier_test(std::uint32_t barrier, int parity) {
    std::uint32_t over;
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
    return over != 0;
}
__device__ __forceinline__ void mbarrier_wait(std::uint32_t barrier, int parity) {
    std::uint32_t over;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.b32 %0, 1, 0, p;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (over == 0);
}

// ---- named barriers (0 is __syncthreads)

__device__ __forceinline__ void named_sync(int barrier, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int barrier, int threads) {
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace longview::kernels::cuda

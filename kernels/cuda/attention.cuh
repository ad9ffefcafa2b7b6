// What the softmax attention kernels share: tiles of keys and values in shared memory, where they
// come from (the paged cache or plain matrices), and the blocked kernel for many queries that
// prefill and the vision tower use (Dao 2023, arXiv:2307.08691: queries stay, keys pass by, the
// softmax is corrected as larger scores turn up).
//
// Everything here runs from sm_80 on. The blocked kernel is cut into load_rows, score_tile,
// online_softmax and accumulate_tile, so that a form for one architecture can replace some of them.
#pragma once

#include <cuda_bf16.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.cuh"

namespace longview::kernels::cuda {

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kLog2E = 1.4426950408889634F;

// ---- numbers

/// 2^x to 2 units in the last place; 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/// Over the four lanes that hold one row of mma's c.
__device__ __forceinline__ float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFU, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xFFFFFFFFU, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(0xFFFFFFFFU, v, 1);
    return v + __shfl_xor_sync(0xFFFFFFFFU, v, 2);
}

// ---- instructions on shared addresses that were computed as numbers

__device__ __forceinline__ void store_shared16(std::uint32_t to, const Bf16x8& v) {
    const auto* u = reinterpret_cast<const std::uint32_t*>(&v);
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(u[0]), "r"(u[1]),
                 "r"(u[2]), "r"(u[3])
                 : "memory");
}
__device__ __forceinline__ Bf16x8 load_shared16(std::uint32_t from) {
    Bf16x8 v;
    auto* u = reinterpret_cast<std::uint32_t*>(&v);
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(u[0]), "=r"(u[1]), "=r"(u[2]), "=r"(u[3])
                 : "r"(from)
                 : "memory");
    return v;
}
__device__ __forceinline__ void store_shared4(std::uint32_t to, std::uint32_t v) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(v) : "memory");
}

// ---- memory of any alignment

__device__ __forceinline__ bool aligned16(const void* p) {
    return (reinterpret_cast<std::uintptr_t>(p) & 15U) == 0;
}
/// Eight values to shared memory; zeros where there are none. Ends with the thread's asynchronous
/// copies where the source is aligned, at once where it is not.
__device__ __forceinline__ void copy_chunk(std::uint32_t to, const bf16* from, bool present) {
    if (present && aligned16(from)) {
        cp_async16(to, from, 16);
        return;
    }
    alignas(16) bf16 values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = present ? from[i] : __float2bfloat16(0.0F);
    store_shared16(to, *reinterpret_cast<const Bf16x8*>(values));
}
__device__ __forceinline__ void store_chunk(bf16* to, const Bf16x8& v) {
    if (aligned16(to)) {
        store8(to, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = v.pair[i].x;
        to[2 * i + 1] = v.pair[i].y;
    }
}

// ---- tiles in shared memory

/// Rows of kDim bf16 in chunks of 16 bytes. A row's chunks are permuted by exclusive or with the
/// row's number, so that the same chunk of eight neighbouring rows (what ldmatrix reads at a time)
/// lies in eight different groups of banks:
///   kDim 64, 128   a row is whole 128-byte lines; chunk ^ (row % 8)
///   kDim 32        two rows a line; chunk ^ (row / 2 % 4), beside 4 * (row % 2)
/// A tile begins at a multiple of kRowBytes. Then offset(row, chunk ^ 2 j) is
/// offset(row, chunk) ^ 32 j, which is how the loops below step through a row.
template <int kDim>
struct SwizzledRows {
    static_assert(kDim == 32 || kDim == 64 || kDim == 128);
    static constexpr int kChunks = kDim / 8;
    static constexpr int kRowBytes = 2 * kDim;

    /// In bytes.
    __device__ __forceinline__ static std::uint32_t offset(int row, int chunk) {
        const int turn = kDim == 32 ? (row >> 1) & 3 : row & 7;
        return static_cast<std::uint32_t>(row * kRowBytes + (chunk ^ turn) * 16);
    }
    /// What a lane hands to ldmatrix for 16 rows by 16 dims, as the matrices of
    ///   an A operand, or of a transposed B: rows 0-7 and 8-15 of chunk 0, then of chunk 1
    __device__ __forceinline__ static std::uint32_t rows_first(int lane) {
        return offset(lane % 16, lane / 16);
    }
    ///   a B operand whose columns are these rows: chunks 0 and 1 of rows 0-7, then of rows 8-15
    __device__ __forceinline__ static std::uint32_t chunks_first(int lane) {
        return offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
};

// ---- where keys and values come from

/// Neighbouring rows of keys and of values, strides in elements.
struct KvRows {
    const bf16* k;
    const bf16* v;
    std::int64_t k_stride;
    std::int64_t v_stride;
};

/// KvView in kBF16. kFast: pages of a power of two of positions, at least a tile of kRows, and
/// 16-byte aligned.
template <bool kFast>
struct PagedKv {
    static constexpr bool kWhole = kFast;
    const void* const* pages = nullptr;
    std::int64_t layer_offset_bytes = 0;
    int page_tokens = 0;
    int page_shift = 0;  // log2 of page_tokens if kFast
    int kv_heads = 0;

    explicit PagedKv(const KvView& kv)
        : pages(kv.pages),
          layer_offset_bytes(kv.layer_offset_bytes),
          page_tokens(static_cast<int>(kv.page_tokens)),
          page_shift(std::countr_zero(static_cast<unsigned>(kv.page_tokens))),
          kv_heads(kv.kv_heads) {}

    /// From position `first` to the end of its page.
    template <int kDim>
    __device__ __forceinline__ KvRows rows(int /*batch*/, int head, int first) const {
        const int page = kFast ? first >> page_shift : first / page_tokens;
        const int within = kFast ? first & (page_tokens - 1) : first - page * page_tokens;
        const auto address = __ldg(reinterpret_cast<const unsigned long long*>(pages) + page);
        const auto* const keys = reinterpret_cast<const bf16*>(address + layer_offset_bytes) +
                                 (static_cast<std::int64_t>(head) * page_tokens + within) * kDim;
        const std::int64_t values = static_cast<std::int64_t>(kv_heads) * page_tokens * kDim;
        return {keys, keys + values, kDim, kDim};
    }
};

/// Whether PagedKv<true> serves tiles of `rows` positions. Pages come from an allocator and are
/// aligned; only the layer's place in them may not be.
inline bool fast_pages(const KvView& kv, std::int64_t rows) {
    return kv.page_tokens % rows == 0 &&
           std::has_single_bit(static_cast<unsigned>(kv.page_tokens)) &&
           kv.layer_offset_bytes % 16 == 0;
}

/// Plain matrices, `tokens` rows for each batch entry. kFast: pointers and strides are multiples of
/// 16 bytes.
template <bool kFast>
struct MatrixKv {
    static constexpr bool kWhole = kFast;
    const bf16* k = nullptr;
    const bf16* v = nullptr;
    std::int64_t k_stride = 0;
    std::int64_t v_stride = 0;
    std::int64_t tokens = 0;

    template <int kDim>
    __device__ __forceinline__ KvRows rows(int batch, int head, int first) const {
        const std::int64_t row = batch * tokens + first;
        return {k + row * k_stride + static_cast<std::int64_t>(head) * kDim,
                v + row * v_stride + static_cast<std::int64_t>(head) * kDim, k_stride, v_stride};
    }
};

/// Which rows of a source.
struct KvRange {
    int batch;
    int head;
    int first;
    int end;  // rows from here on become zeros
};

/// Starts the copy of kRows keys and values to two tiles. Source::kWhole: they are neighbours in
/// memory and aligned, and range.first exists; else every row is looked up by itself. kThreads
/// threads call it, `thread` of them this one.
template <int kDim, int kRows, int kThreads, class Source>
__device__ __forceinline__ void load_rows(const Source& source, const KvRange& range, int thread,
                                          std::uint32_t k_tile, std::uint32_t v_tile) {
    using Rows = SwizzledRows<kDim>;
    constexpr int kStep = kThreads / Rows::kChunks;
    static_assert(kThreads % Rows::kChunks == 0 && kRows % kStep == 0);
    const int chunk = thread % Rows::kChunks;
    const int first = thread / Rows::kChunks;
    if constexpr (Source::kWhole) {
        const KvRows from = source.template rows<kDim>(range.batch, range.head, range.first);
        const bf16* const k = from.k + first * from.k_stride + 8 * chunk;
        const bf16* const v = from.v + first * from.v_stride + 8 * chunk;
        const int present = range.end - range.first;
#pragma unroll
        for (int i = 0; i < kRows; i += kStep)
            cp_async16(k_tile + Rows::offset(first + i, chunk), k + i * from.k_stride,
                       first + i < present ? 16 : 0);
#pragma unroll
        for (int i = 0; i < kRows; i += kStep)
            cp_async16(v_tile + Rows::offset(first + i, chunk), v + i * from.v_stride,
                       first + i < present ? 16 : 0);
    } else {
        for (int row = first; row < kRows; row += kStep) {
            const bool present = range.first + row < range.end;
            KvRows from{};
            if (present)
                from = source.template rows<kDim>(range.batch, range.head, range.first + row);
            copy_chunk(k_tile + Rows::offset(row, chunk), from.k + 8 * chunk, present);
            copy_chunk(v_tile + Rows::offset(row, chunk), from.v + 8 * chunk, present);
        }
    }
}

}  // namespace longview::kernels::cuda

// Causal attention for many queries on Hopper GPUs (Shah et al. 2024, arXiv:2407.08608: matrix
// instructions run while the softmax of other scores is computed).
//
// A block takes 128 rows of one query head through their keys, 128 at a time. One warpgroup copies:
// two warps the keys, two the values, each through kStages buffers. Two warpgroups compute, 64 rows
// each: scores of tile j and values of tile j - 1 are issued together, and while the latter run the
// softmax of the former is computed; the two take turns in issuing, so that one's softmax falls
// into the other's matrix instructions.
//
// Bound: matrix instructions. A tile takes two warpgroups 2 x 16 instructions of 64 cycles each,
// 2048; its 2 x 8192 exponentials 1024 cycles of the special function units. It moves 64 KB from
// L2.
#include <cstdint>

#include "kernels/cuda/softmax_prefill_sm90.h"
#include "kernels/cuda/wgmma_tiles.cuh"

namespace longview::kernels::cuda {
namespace {

constexpr int kDim = 128;
constexpr int kKeys = kTileRows;
constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;
constexpr int kConsumerRows = 64;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kStages = 2;         // 3 fit, too
constexpr bool kTakeTurns = true;  // the warpgroups that compute
constexpr bool kSettle = true;     // see Consumer::settle
// The compiler's share is 65536 / kThreads, rounded down to 168; what is given back covers what is
// taken: 128 * 40 + 256 * 232 = 384 * 168.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
constexpr int kCopyThreads = 64;  // of keys, and of values

static_assert(kFlashRows == kConsumers * kConsumerRows && kFlashRows == kTileRows);

/// Shared memory: queries, then kStages tiles of keys, kStages of values, barriers.
constexpr int kBarriers = 4 * kStages;
constexpr int kSharedBytes = (1 + 2 * kStages) * kTileBytes + 8 * kBarriers;
constexpr int kAskedBytes = kSharedBytes + kAtomBytes;  // the start is rounded up

/// A ring of tiles in shared memory. Tile j lies in buffer j % kStages.
struct Ring {
    std::uint32_t tiles;
    std::uint32_t barriers;  // kStages that say "filled", kStages that say "used"

    __device__ __forceinline__ static Ring at(std::uint32_t base, int which) {
        return {base + static_cast<std::uint32_t>((1 + which * kStages) * kTileBytes),
                base + static_cast<std::uint32_t>((1 + 2 * kStages) * kTileBytes +
                                                  which * 2 * kStages * 8)};
    }
    __device__ __forceinline__ std::uint32_t tile(int j) const {
        return tiles + static_cast<std::uint32_t>(j % kStages * kTileBytes);
    }
    __device__ __forceinline__ std::uint32_t filled(int j) const {
        return barriers + static_cast<std::uint32_t>(j % kStages * 8);
    }
    __device__ __forceinline__ std::uint32_t used(int j) const { return filled(j) + kStages * 8; }
    __device__ __forceinline__ static int round(int j) { return j / kStages % 2; }

    __device__ __forceinline__ void start() const {
        for (int i = 0; i < kStages; ++i) {
            mbarrier_init(filled(i), kCopyThreads);
            mbarrier_init(used(i), kConsumers * kWarpgroup / kWarp);
        }
    }
    __device__ __forceinline__ void wait_filled(int j) const { mbarrier_wait(filled(j), round(j)); }
    /// By every warp that read the tile.
    __device__ __forceinline__ void release(int j) const {
        if (threadIdx.x % kWarp == 0) mbarrier_arrive(used(j));
    }
};

// ---- copying

/// This thread's part of a tile of which `present` rows exist; the others become zeros (never what
/// the cache happens to hold: 0 times NaN is not 0).
__device__ __forceinline__ void copy_tile(std::uint32_t to, const bf16* from, int thread,
                                          int present) {
    constexpr int kChunks = kDim / 8;
    constexpr int kStep = kCopyThreads / kChunks;
    static_assert(kStep == 4);  // two steps: the same swizzle, 8 lines further
    const int row = thread / kChunks;
    const int chunk = thread % kChunks;
    const std::uint32_t even = to + tile_offset(row, chunk);
    const std::uint32_t odd = to + tile_offset(row + kStep, chunk);
    from += row * kDim + 8 * chunk;
    if (present >= kKeys) {
#pragma unroll
        for (int i = 0; i < kKeys; i += 2 * kStep) {
            cp_async16(even + i * 128, from + i * kDim, 16);
            cp_async16(odd + i * 128, from + (i + kStep) * kDim, 16);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < kKeys; i += 2 * kStep) {
            cp_async16(even + i * 128, from + i * kDim, row + i < present ? 16 : 0);
            cp_async16(odd + i * 128, from + (i + kStep) * kDim,
                       row + i + kStep < present ? 16 : 0);
        }
    }
}

/// The work of 64 threads: all tiles of keys (which = 0) or of values (1).
__device__ __forceinline__ void produce(const PagedKv<true>& kv, const FlashBlock& b, int tiles,
                                        const Ring& ring, int which) {
    const int thread = static_cast<int>(threadIdx.x) % kCopyThreads;
    bool pending = false;  // whether tile j - 1 is on its way
#pragma unroll 1
    for (int j = 0; j < tiles; ++j) {
        const KvRows rows = kv.rows<kDim>(0, b.kv_head, j * kKeys);
        // The tile before is handed over when its copies have ended: at the latest before this
        // thread waits for readers, who may be waiting for that tile.
        if (pending && !mbarrier_test(ring.used(j), Ring::round(j) ^ 1)) {
            cp_async_wait<0>();
            fence_for_matrices();
            mbarrier_arrive(ring.filled(j - 1));
            pending = false;
        }
        mbarrier_wait(ring.used(j), Ring::round(j) ^ 1);
        copy_tile(ring.tile(j), which == 0 ? rows.k : rows.v, thread, b.end_key - j * kKeys);
        cp_async_commit();
        if (pending) {
            cp_async_wait<1>();
            fence_for_matrices();
            mbarrier_arrive(ring.filled(j - 1));
        }
        pending = true;
    }
    cp_async_wait<0>();
    fence_for_matrices();
    mbarrier_arrive(ring.filled(tiles - 1));
}

// ---- computing

/// 64 rows. Index `half` is row 8 half + lane / 4 of the warp's sixteen.
struct Consumer {
    float s[64];            // scores, as wgmma leaves them
    std::uint32_t p[8][4];  // their exponentials, as wgmma takes them
    float o[64];
    float largest[2];
    float sum[2];  // over this lane's columns
    float factor[2];
    float scale_log2;
    int limit;  // the first key that row 0 does not see, less this lane's first column

    __device__ __forceinline__ void start(const FlashArgs& args, int first_limit) {
#pragma unroll
        for (int i = 0; i < 64; ++i) o[i] = 0.0F;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            largest[half] = kMinusInfinity;
            sum[half] = 0.0F;
        }
        scale_log2 = args.scale_log2;
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        limit = first_limit + lane / 4 - lane % 4 * 2;
    }
    __device__ __forceinline__ void issue_scores(std::uint64_t q, std::uint64_t k) {
        wgmma_shared<false>(s, q, k);
#pragma unroll
        for (int step = 1; step < kDim / 16; ++step)
            wgmma_shared<true>(s, q + columns_step(step), k + columns_step(step));
        wgmma_commit();
    }
    __device__ __forceinline__ void issue_values(std::uint64_t v) {
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step)
            wgmma_registers(o, p[step], v + rows_step(step));
        wgmma_commit();
    }
    __device__ __forceinline__ void mask(int first_key) {
        const int seen = limit - first_key;
#pragma unroll
        for (int i = 0; i < 64; ++i)
            if (i / 4 * 8 + i % 2 >= seen + i % 4 / 2 * 8) s[i] = kMinusInfinity;
    }
    /// s becomes exp(scale (s - largest)). Every row has seen key 0 by the end of its first tile,
    /// hence `largest` is finite.
    __device__ __forceinline__ void softmax() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int h = 2 * half;
            float top[2] = {s[h], s[h + 1]};
#pragma unroll
            for (int n = 4; n < 64; n += 4) {
                top[0] = fmaxf(top[0], s[n + h]);
                top[1] = fmaxf(top[1], s[n + h + 1]);
            }
            const float most = fmaxf(largest[half], quad_max(fmaxf(top[0], top[1])));
            factor[half] = exp2_approx((largest[half] - most) * scale_log2);
            largest[half] = most;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int h = 2 * half;
            const float shift = -largest[half] * scale_log2;
            float added[2] = {0.0F, 0.0F};
#pragma unroll
            for (int n = 0; n < 64; n += 4)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    s[n + h + i] = exp2_approx(fmaf(s[n + h + i], scale_log2, shift));
                    added[i] += s[n + h + i];
                }
            sum[half] = fmaf(sum[half], factor[half], added[0] + added[1]);
        }
    }
    /// Never stores. Without it the assembler moves most exponentials behind the wait that follows
    /// them, where no matrix instructions of this warpgroup are left to run beside them.
    __device__ __forceinline__ void settle(std::uint32_t place) const {
        asm volatile(
            "{\n.reg .pred p;\nsetp.lt.f32 p, %1, 0f00000000;\n@p st.shared.f32 [%0], %1;\n}" ::"r"(
                place),
            "f"(fminf(sum[0], sum[1]))
            : "memory");
    }
    __device__ __forceinline__ void pack() {
#pragma unroll
        for (int step = 0; step < 8; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                p[step][i] = pack_bf16(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
    }
    __device__ __forceinline__ void rescale() {
        // Past the first tiles a larger score is rare, and a factor of 1 changes nothing.
        if (__any_sync(0xFFFFFFFFU, fminf(factor[0], factor[1]) != 1.0F)) {
#pragma unroll
            for (int i = 0; i < 64; ++i) o[i] *= factor[i % 4 / 2];
        }
    }
};

/// Named barriers: 1 and 2 say whose turn it is, 3 and 4 join a warpgroup's four warps.
__device__ __forceinline__ void wait_for_turn(int consumer) {
    if constexpr (kTakeTurns) named_sync(1 + consumer, kConsumers * kWarpgroup);
}
__device__ __forceinline__ void give_turn_to(int consumer) {
    if constexpr (kTakeTurns) named_arrive(1 + consumer, kConsumers * kWarpgroup);
}

struct Tiles {
    Ring k;
    Ring v;
    std::uint64_t q;  // descriptor
    int consumer;
};

/// Scores of tile j and their softmax, while the values of tile j - 1 are added.
template <bool kMasked>
__device__ __forceinline__ void step(Consumer& c, const Tiles& t, int j) {
    t.k.wait_filled(j);
    t.v.wait_filled(j - 1);
    wait_for_turn(t.consumer);
    hold(c.o);
    hold(c.p);
    wgmma_fence();
    c.issue_scores(t.q, columns_descriptor(t.k.tile(j)));
    c.issue_values(rows_descriptor(t.v.tile(j - 1)));
    give_turn_to(1 - t.consumer);
    wgmma_wait<1>();
    hold(c.s);
    t.k.release(j);
    if constexpr (kMasked) c.mask(j * kKeys);
    c.softmax();
    if constexpr (kSettle) c.settle(t.k.tile(j));
    wgmma_wait<0>();
    hold(c.o);
    hold(c.p);
    t.v.release(j - 1);
    c.pack();
    c.rescale();
}

/// The warpgroup's queries to its 64 lines of the two panels at `to`.
__device__ __forceinline__ void load_queries_sm90(const FlashArgs& args, const bf16* q, int rows,
                                                  std::uint32_t to) {
    constexpr int kChunks = kDim / 8;
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    const int chunk = thread % kChunks;
#pragma unroll
    for (int i = 0; i < kConsumerRows; i += kWarpgroup / kChunks) {
        const int row = thread / kChunks + i;
        const bool present = row < rows;
        cp_async16(to + tile_offset(row, chunk),
                   q + (present ? row : 0) * args.q_stride + 8 * chunk, present ? 16 : 0);
    }
    cp_async_commit();
    cp_async_wait<0>();
    fence_for_matrices();
}

/// Normalises, and writes the warpgroup's rows through its lines of the queries' tile.
__device__ __forceinline__ void finish(const Consumer& c, std::uint32_t shared, bf16* out,
                                       std::int64_t stride, int rows) {
    constexpr int kChunks = kDim / 8;
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    const int lane = thread % kWarp;
    const int first = thread / kWarp * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float scale = 1.0F / quad_sum(c.sum[half]);
        const int row = first + 8 * half + lane / 4;
#pragma unroll
        for (int n = 0; n < kChunks; ++n)
            store_shared4(
                shared + tile_offset(row, n) + lane % 4 * 4,
                pack_bf16(c.o[4 * n + 2 * half] * scale, c.o[4 * n + 2 * half + 1] * scale));
    }
    __syncwarp();
    const int chunk = lane % kChunks;
#pragma unroll 4
    for (int row = first + lane / kChunks; row < first + 16; row += kWarp / kChunks)
        if (row < rows)
            store8(out + row * stride + 8 * chunk, load_shared16(shared + tile_offset(row, chunk)));
}

__device__ __forceinline__ void consume(const FlashArgs& args, const FlashBlock& b, int tiles,
                                        std::uint32_t base, int consumer) {
    const int first_row = b.first_row + consumer * kConsumerRows;
    const int rows = args.rows - first_row;  // not positive: computed on zeros, never written
    // The lines of 64 rows begin at a multiple of 1024 bytes in either panel.
    const std::uint32_t queries = base + static_cast<std::uint32_t>(consumer * kConsumerRows * 128);
    const std::int64_t column = static_cast<std::int64_t>(b.head) * kDim;
    const auto element = [&](std::int64_t stride) {
        return rows > 0 ? first_row * stride + column : column;
    };
    if (consumer == 1) give_turn_to(0);
    load_queries_sm90(args, args.q + element(args.q_stride), rows, queries);
    named_sync(3 + consumer, kWarpgroup);

    const Tiles t{Ring::at(base, 0), Ring::at(base, 1), columns_descriptor(queries), consumer};
    const int warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
    const int all = b.position + first_row + 1;  // keys that all rows of the warpgroup see
    const int unmasked = min(tiles, all / kKeys);
    Consumer c;
    c.start(args, all + warp * 16);
    t.k.wait_filled(0);
    wgmma_fence();
    c.issue_scores(t.q, columns_descriptor(t.k.tile(0)));
    wgmma_wait<0>();
    hold(c.s);
    t.k.release(0);
    if (unmasked == 0) c.mask(0);
    c.softmax();
    c.pack();
    int j = 1;
#pragma unroll 1
    for (; j < unmasked; ++j) step<false>(c, t, j);
#pragma unroll 1
    for (; j < tiles; ++j) step<true>(c, t, j);
    t.v.wait_filled(tiles - 1);
    hold(c.o);
    hold(c.p);
    wgmma_fence();
    c.issue_values(rows_descriptor(t.v.tile(tiles - 1)));
    wgmma_wait<0>();
    hold(c.o);
    hold(c.p);
    // All four warps' instructions have read the queries.
    named_sync(3 + consumer, kWarpgroup);
    finish(c, queries, args.out + element(args.out_stride), args.out_stride, rows);
    if (consumer == 0) wait_for_turn(0);  // the other's last
}

__global__ void __launch_bounds__(kThreads, 1)
    softmax_prefill_sm90_kernel(const __grid_constant__ FlashArgs args,
                                const __grid_constant__ PagedKv<true> kv) {
    extern __shared__ __align__(1024) unsigned char prefill_memory[];
    const std::uint32_t base =
        (shared_address(prefill_memory) + kAtomBytes - 1) & ~std::uint32_t{kAtomBytes - 1};
    const FlashBlock b = flash_block<true>(args);
    const int tiles = (b.end_key + kKeys - 1) / kKeys;
    if (threadIdx.x == 0) {
        Ring::at(base, 0).start();
        Ring::at(base, 1).start();
    }
    __syncthreads();
    const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / kWarp, 0);
    if (warp < kWarpgroup / kWarp) {
        give_registers_back<kProducerRegisters>();
        const int which = warp / (kCopyThreads / kWarp);
        produce(kv, b, tiles, Ring::at(base, which), which);
    } else {
        take_registers<kConsumerRegisters>();
        consume(args, b, tiles, base, warp / (kWarpgroup / kWarp) - 1);
    }
}

bool aligned_rows(const bf16* p, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && stride % 8 == 0;
}

}  // namespace

bool fits_sm90(const FlashArgs& args, const KvView& kv) {
    return kv.head_dim == kDim && fast_pages(kv, kKeys) && aligned_rows(args.q, args.q_stride) &&
           aligned_rows(args.out, args.out_stride);
}

void softmax_prefill_sm90(const Context& c, FlashArgs args, const KvView& kv) {
    check(cudaFuncSetAttribute(softmax_prefill_sm90_kernel,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kAskedBytes),
          "softmax_prefill_sm90");
    args.row_blocks = (args.rows + kFlashRows - 1) / kFlashRows;
    const dim3 grid(static_cast<unsigned>(args.row_blocks * args.group),
                    static_cast<unsigned>(kv.kv_heads));
    softmax_prefill_sm90_kernel<<<grid, kThreads, kAskedBytes, c.stream>>>(args, PagedKv<true>(kv));
    check_launch("softmax_prefill_sm90");
}

}  // namespace longview::kernels::cuda

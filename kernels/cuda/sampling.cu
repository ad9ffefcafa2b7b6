// The choice of the next token on the device, in the order that SampleParams states and as the CPU
// form does it: which ids pass the filters is a prefix of the ranking by value (the lower id first
// among equals), and the draw walks those ids in order of id.
//
// Weights are summed as integers (2^40 is the largest weight), so sums do not depend on the order
// in which threads add, and a run repeats exactly.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kScoreThreads = 256;
constexpr int kMostScoreBlocks = 256;
constexpr int kBins = 256;
constexpr float kWeightScale = 1099511627776.0F;  // 2^40

using Sum = unsigned long long;

/// Larger floats have larger keys.
__device__ std::uint32_t key_of(float v) {
    const std::uint32_t bits = __float_as_uint(v);
    return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ float value_of(std::uint32_t key) {
    return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7FFFFFFFU : ~key);
}

/// The larger value wins, then the lower id.
struct Best {
    float value;
    std::int32_t id;
};
__device__ Best better(Best a, Best b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id) ? a : b;
}
__device__ Best block_best(Best v, Best* shared) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
        v = better(v, {__shfl_xor_sync(0xFFFFFFFFU, v.value, offset),
                       __shfl_xor_sync(0xFFFFFFFFU, v.id, offset)});
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    __syncthreads();
    if (threadIdx.x % kWarp == 0) shared[warp] = v;
    __syncthreads();
    v = shared[static_cast<int>(threadIdx.x) % warps];
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
        v = better(v, {__shfl_xor_sync(0xFFFFFFFFU, v.value, offset),
                       __shfl_xor_sync(0xFFFFFFFFU, v.id, offset)});
    return v;
}

__global__ void count_history_kernel(const std::int32_t* history, std::int64_t length,
                                     std::int32_t vocab, std::int32_t* counts) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < length && history[i] >= 0 && history[i] < vocab) atomicAdd(&counts[history[i]], 1);
}

struct Penalties {
    float repetition, presence, frequency;
};

/// values = logits after suppression and penalties; the best of each block; broken: an id whose
/// score is NaN or +inf, or -1.
__global__ void score_kernel(const float* logits, std::int32_t vocab,
                             const std::uint8_t* suppressed, const std::int32_t* counts,
                             Penalties penalties, float* values, Best* bests,
                             std::int32_t* broken) {
    __shared__ Best shared[kScoreThreads / kWarp];
    constexpr float kNever = -INFINITY;
    Best best{kNever, vocab};
    for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
         i < vocab; i += static_cast<std::int32_t>(gridDim.x * blockDim.x)) {
        float v = kNever;
        if (suppressed == nullptr || suppressed[i] == 0) {
            v = logits[i];
            if (!(v <= 3.402823466e+38F)) atomicMax(broken, i);
            const std::int32_t count = counts == nullptr ? 0 : counts[i];
            if (count > 0) {
                v = v < 0.0F ? v * penalties.repetition : v / penalties.repetition;
                v -= penalties.presence + penalties.frequency * static_cast<float>(count);
            }
        }
        values[i] = v;
        best = better(best, {v, i});
    }
    best = block_best(best, shared);
    if (threadIdx.x == 0) bests[blockIdx.x] = best;
}

/// Ids at the front of the ranking: all with a larger key, and the first `ties` of those with
/// `key`.
struct Prefix {
    std::uint32_t key = 0;
    std::int64_t ties = 0;
};

struct Filter {
    float inverse_temperature;
    std::int64_t top_k;  // 0: all
    double top_p;
    float min_p;
    double u;  // of the draw, [0, 1)
};

/// What the one block of draw_kernel shares.
struct Shared {
    Sum bins[kBins];
    Sum scan[kThreads / kWarp];
    Best best[kThreads / kWarp];
    std::uint32_t key;
    Sum before;
    Sum at_key;
    std::int32_t chosen;
};

class Drawer {
  public:
    __device__ Drawer(const float* values, std::int32_t vocab, float largest, float inverse,
                      Shared& shared)
        : values_(values), vocab_(vocab), largest_(largest), inverse_(inverse), shared_(shared) {}

    __device__ float weight(float value) const {
        return value == -INFINITY ? 0.0F : expf((value - largest_) * inverse_);
    }
    __device__ static Sum fixed(float weight) {
        return static_cast<Sum>(__float2ull_rn(weight * kWeightScale));
    }

    /// Finds the shortest prefix of the ranking within `limit` whose sum of `measure` reaches
    /// `enough` (at least 1): key and, among its equals, how many. Four passes over the values, a
    /// byte of the key each. When everything together does not reach it: the limit.
    template <typename Measure>
    __device__ Prefix shortest(const Measure& measure, Sum enough, Prefix limit) {
        std::uint32_t known = 0;  // upper bytes of the key
        Sum before = 0;           // sum over larger keys
        Sum equal = 0;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int b = static_cast<int>(threadIdx.x); b < kBins; b += kThreads)
                shared_.bins[b] = 0;
            __syncthreads();
            const std::uint32_t mask = shift == 24 ? 0U : 0xFFFFFFFFU << (shift + 8);
            for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < vocab_;
                 i += kThreads) {
                const float value = values_[i];
                const std::uint32_t key = key_of(value);
                if (value == -INFINITY || (key & mask) != known) continue;
                atomicAdd(&shared_.bins[(key >> shift) & 0xFFU], measure(value));
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                int b = kBins - 1;
                Sum sum = before;
                for (; b > 0; --b) {
                    if (sum + shared_.bins[b] >= enough) break;
                    sum += shared_.bins[b];
                }
                shared_.key = known | static_cast<std::uint32_t>(b) << shift;
                shared_.before = sum;
                shared_.at_key = shared_.bins[b];
            }
            __syncthreads();
            known = shared_.key;
            before = shared_.before;
            equal = shared_.at_key;
            __syncthreads();
        }
        if (before + equal < enough) return limit;
        const Sum each = measure(value_of(known));
        const Sum missing = enough - before;
        const Prefix found{known,
                           each == 0 ? 0 : static_cast<std::int64_t>((missing + each - 1) / each)};
        return found.key > limit.key || (found.key == limit.key && found.ties < limit.ties) ? found
                                                                                            : limit;
    }

    /// Sum over the block of each thread's value in front of it (exclusive), and the total.
    __device__ Sum exclusive_scan(Sum value, Sum& total) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        const int warp = static_cast<int>(threadIdx.x) / kWarp;
        Sum inclusive = value;
#pragma unroll
        for (int offset = 1; offset < kWarp; offset <<= 1) {
            const Sum other = __shfl_up_sync(0xFFFFFFFFU, inclusive, offset);
            if (lane >= offset) inclusive += other;
        }
        __syncthreads();
        if (lane == kWarp - 1) shared_.scan[warp] = inclusive;
        __syncthreads();
        Sum before = 0;
        total = 0;
        for (int w = 0; w < kThreads / kWarp; ++w) {
            if (w < warp) before += shared_.scan[w];
            total += shared_.scan[w];
        }
        return before + inclusive - value;
    }

    /// Draws among the prefix: the first id, in order of id, where the running sum passes u times
    /// the total. Each thread owns a run of neighbouring ids.
    __device__ std::int32_t draw(const Prefix& prefix, double u) {
        const std::int32_t run = (vocab_ + kThreads - 1) / kThreads;
        const std::int32_t first = min(vocab_, static_cast<std::int32_t>(threadIdx.x) * run);
        const std::int32_t last = min(vocab_, first + run);
        Sum ties = 0;
        for (std::int32_t i = first; i < last; ++i)
            ties += key_of(values_[i]) == prefix.key && values_[i] != -INFINITY ? 1 : 0;
        Sum unused = 0;
        const Sum ties_before = exclusive_scan(ties, unused);

        const auto kept_weight = [&](std::int32_t i, Sum& tie) -> Sum {
            const std::uint32_t key = key_of(values_[i]);
            if (key < prefix.key || values_[i] == -INFINITY) return 0;
            if (key == prefix.key && static_cast<std::int64_t>(tie++) >= prefix.ties) return 0;
            return fixed(weight(values_[i]));
        };
        Sum mine = 0;
        Sum tie = ties_before;
        for (std::int32_t i = first; i < last; ++i) mine += kept_weight(i, tie);
        Sum total = 0;
        const Sum before = exclusive_scan(mine, total);
        Sum target = static_cast<Sum>(u * static_cast<double>(total));
        if (target >= total) target = total - 1;  // u times the total may round up
        if (before <= target && target < before + mine) {
            Sum sum = before;
            tie = ties_before;
            for (std::int32_t i = first; i < last; ++i) {
                sum += kept_weight(i, tie);
                if (sum > target) {
                    shared_.chosen = i;
                    break;
                }
            }
        }
        __syncthreads();
        return shared_.chosen;
    }

  private:
    const float* values_;
    std::int32_t vocab_;
    float largest_, inverse_;
    Shared& shared_;
};

__global__ void __launch_bounds__(kThreads)
    draw_kernel(const float* values, std::int32_t vocab, const Best* bests, int blocks,
                const std::int32_t* broken, bool greedy, Filter f, SampleResult* out) {
    __shared__ Shared shared;
    Best best{-INFINITY, vocab};
    for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads)
        best = better(best, bests[i]);
    best = block_best(best, shared.best);
    const std::int32_t bad = *broken;
    if (greedy || bad >= 0 || best.value == -INFINITY) {
        if (threadIdx.x == 0) *out = {best.id, bad, best.value};
        return;
    }

    Drawer drawer(values, vocab, best.value, f.inverse_temperature, shared);
    const auto one = [](float) -> Sum { return 1; };
    const auto weight = [&](float v) -> Sum { return Drawer::fixed(drawer.weight(v)); };
    Prefix kept{key_of(-INFINITY), 0};  // everything but what may never come
    if (f.top_k > 0) kept = drawer.shortest(one, static_cast<Sum>(f.top_k), kept);
    if (f.top_p < 1.0) {
        // The share counts among what top_k left.
        Sum mine = 0;
        for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < vocab; i += kThreads)
            if (key_of(values[i]) > kept.key) mine += weight(values[i]);
        Sum total = 0;
        drawer.exclusive_scan(mine, total);
        total += static_cast<Sum>(kept.ties) * weight(value_of(kept.key));
        const double share = f.top_p * static_cast<double>(total);
        kept = drawer.shortest(weight, max(Sum{1}, static_cast<Sum>(ceil(share))), kept);
    }
    if (f.min_p > 0.0F) {
        // Weights below min_p drop out: the prefix ends before the first of them. The largest has
        // weight 1 and stays.
        std::uint32_t lowest = 0xFFFFFFFFU;
        for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < vocab; i += kThreads)
            if (drawer.weight(values[i]) >= f.min_p) lowest = min(lowest, key_of(values[i]));
#pragma unroll
        for (int offset = 16; offset > 0; offset >>= 1)
            lowest = min(lowest, __shfl_xor_sync(0xFFFFFFFFU, lowest, offset));
        if (threadIdx.x == 0) shared.key = 0xFFFFFFFFU;
        __syncthreads();
        if (threadIdx.x % kWarp == 0) atomicMin(&shared.key, lowest);
        __syncthreads();
        if (shared.key > kept.key) kept = {shared.key, vocab};
        __syncthreads();
    }
    const std::int32_t chosen = drawer.draw(kept, f.u);
    if (threadIdx.x == 0) *out = {chosen, -1, best.value};
}

/// Splitmix64's finaliser: every bit of the input moves every bit of the output.
std::uint64_t mix(std::uint64_t z) {
    z += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

}  // namespace

void sample(const Context& c, const SampleParams& p, SampleResult* out) {
    LONGVIEW_CHECK(p.vocab > 0 && p.vocab <= std::numeric_limits<std::int32_t>::max() - kThreads,
                   "there is something to choose from");
    LONGVIEW_CHECK(p.temperature >= 0.0F && p.top_k >= 0 && p.top_p >= 0.0F && p.min_p >= 0.0F &&
                       p.min_p <= 1.0F && p.repetition_penalty > 0.0F,
                   "sampling parameters lie in their ranges");
    const auto vocab = static_cast<std::int32_t>(p.vocab);
    auto* const values = c.scratch->take_array<float>(vocab);
    auto* const bests = c.scratch->take_array<Best>(kMostScoreBlocks);
    auto* const broken = c.scratch->take_array<std::int32_t>(1);
    std::int32_t* counts = nullptr;
    check(cudaMemsetAsync(broken, 0xFF, sizeof(std::int32_t), c.stream), "sample");
    const bool penalised =
        p.history_length > 0 &&
        (p.repetition_penalty != 1.0F || p.presence_penalty != 0.0F || p.frequency_penalty != 0.0F);
    if (penalised) {
        counts = c.scratch->take_array<std::int32_t>(vocab);
        check(cudaMemsetAsync(counts, 0, static_cast<std::size_t>(vocab) * sizeof(std::int32_t),
                              c.stream),
              "sample");
        const auto blocks =
            static_cast<unsigned>((p.history_length + kScoreThreads - 1) / kScoreThreads);
        count_history_kernel<<<blocks, kScoreThreads, 0, c.stream>>>(p.history, p.history_length,
                                                                     vocab, counts);
        check_launch("sample");
    }
    const int blocks =
        std::min(kMostScoreBlocks, static_cast<int>((p.vocab + kScoreThreads - 1) / kScoreThreads));
    score_kernel<<<blocks, kScoreThreads, 0, c.stream>>>(
        p.logits, vocab, p.suppressed, counts,
        {p.repetition_penalty, p.presence_penalty, p.frequency_penalty}, values, bests, broken);
    check_launch("sample");
    const float inverse = 1.0F / p.temperature;
    const Filter filter{.inverse_temperature = inverse,
                        .top_k = p.top_k < p.vocab ? p.top_k : 0,
                        .top_p = p.top_p,
                        .min_p = p.min_p,
                        .u = static_cast<double>(mix(mix(p.seed) ^ p.step) >> 11) * 0x1p-53};
    draw_kernel<<<1, kThreads, 0, c.stream>>>(values, vocab, bests, blocks, broken,
                                              !std::isfinite(inverse), filter, out);
    check_launch("sample");
}

}  // namespace longview::kernels::cuda

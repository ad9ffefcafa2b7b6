// Rotary position embedding of part of each head, and storing keys and values into the cache
// (model-spec 4; Su et al. 2021, arXiv:2104.09864, NeoX halves).
//
// The angle is the float product position * theta_i with theta_i rounded to float, as in the
// references; its sine and cosine are exact to 2 units in the last place for any argument.
//
// Bound: memory; reads q's turned part, k and v once, writes them once.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostPairs = 128;

struct RopeArgs {
    bf16* q = nullptr;
    const bf16* k = nullptr;
    const bf16* v = nullptr;
    std::int64_t q_stride = 0;
    std::int64_t k_stride = 0;
    std::int64_t v_stride = 0;
    int heads = 0;
    int kv_heads = 0;
    int head_dim = 0;
    int half = 0;  // of rotary_dim
    std::int64_t position = 0;
    const StepInput* step = nullptr;
    void* const* pages = nullptr;
    std::int64_t page_tokens = 0;
    std::int64_t layer_offset_bytes = 0;
    float theta[kMostPairs] = {};
};

/// kWidth values at a time: 8 where everything is aligned to 16 bytes, else 1.
template <int kWidth>
struct Values {
    float x[kWidth];

    __device__ static Values load(const bf16* p) {
        Values v;
        if constexpr (kWidth == 8) {
            unpack8(load8(p), v.x);
        } else {
            v.x[0] = __bfloat162float(*p);
        }
        return v;
    }
    __device__ void store(bf16* p) const {
        if constexpr (kWidth == 8) {
            store8(p, pack8(x));
        } else {
            *p = __float2bfloat16(x[0]);
        }
    }
    __device__ void store(float* p) const {
        if constexpr (kWidth == 8) {
            reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
            reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
        } else {
            *p = x[0];
        }
    }
};

/// Turns the pairs (i, i + half) of a head from i on. `to` may be `from`.
template <int kWidth, class To>
__device__ void turn(const bf16* from, To* to, int i, int half, const float* cosine,
                     const float* sine) {
    const auto low = Values<kWidth>::load(from + i);
    const auto high = Values<kWidth>::load(from + i + half);
    Values<kWidth> new_low;
    Values<kWidth> new_high;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
        new_low.x[j] = low.x[j] * cosine[i + j] - high.x[j] * sine[i + j];
        new_high.x[j] = high.x[j] * cosine[i + j] + low.x[j] * sine[i + j];
    }
    new_low.store(to + i);
    new_high.store(to + i + half);
}

/// One row a blockIdx.x; the blocks of a row (blockIdx.y) share its items, which are: pairs of q's
/// heads; pairs and the rest of k's heads; v's heads.
template <int kWidth, class Kv>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ RopeArgs args) {
    __shared__ float cosine[kMostPairs];
    __shared__ float sine[kMostPairs];
    const auto row = static_cast<std::int64_t>(blockIdx.x);
    const auto thread = static_cast<int>(threadIdx.x);
    const std::int64_t position =
        (args.step != nullptr ? args.step->position : args.position) + row;
    for (int i = thread; i < args.half; i += kThreads)
        sincosf(__fmul_rn(static_cast<float>(position), args.theta[i]), &sine[i], &cosine[i]);
    __syncthreads();

    const int dims = args.head_dim;
    const std::int64_t page = position / args.page_tokens;
    const std::int64_t head_size = args.page_tokens * dims;  // of a page
    Kv* const keys =
        reinterpret_cast<Kv*>(static_cast<std::byte*>(args.pages[page]) + args.layer_offset_bytes) +
        (position - page * args.page_tokens) * dims;
    Kv* const values = keys + args.kv_heads * head_size;
    const int pairs = args.half / kWidth;
    const int rest = (dims - 2 * args.half) / kWidth;
    const int key_items = pairs + rest;
    const int value_items = dims / kWidth;
    const int first_key = args.heads * pairs;
    const int first_value = first_key + args.kv_heads * key_items;
    const int items = first_value + args.kv_heads * value_items;
    const int step = static_cast<int>(gridDim.y) * kThreads;
    for (int item = static_cast<int>(blockIdx.y) * kThreads + thread; item < items; item += step) {
        if (item < first_key) {
            bf16* const q =
                args.q + row * args.q_stride + static_cast<std::int64_t>(item / pairs) * dims;
            turn<kWidth>(q, q, item % pairs * kWidth, args.half, cosine, sine);
        } else if (item < first_value) {
            const int head = (item - first_key) / key_items;
            const int part = (item - first_key) % key_items;
            const bf16* const k =
                args.k + row * args.k_stride + static_cast<std::int64_t>(head) * dims;
            Kv* const to = keys + head * head_size;
            const int copied = 2 * args.half + (part - pairs) * kWidth;
            if (part < pairs) {
                turn<kWidth>(k, to, part * kWidth, args.half, cosine, sine);
            } else {
                Values<kWidth>::load(k + copied).store(to + copied);
            }
        } else {
            const int head = (item - first_value) / value_items;
            const int at = (item - first_value) % value_items * kWidth;
            const bf16* const v =
                args.v + row * args.v_stride + static_cast<std::int64_t>(head) * dims;
            Values<kWidth>::load(v + at).store(values + head * head_size + at);
        }
    }
}

void check_rope(const RopeAppendParams& p) {
    const KvView& kv = p.kv;
    LONGVIEW_CHECK(kv.kv_heads > 0 && kv.head_dim > 0 && kv.page_tokens > 0 && kv.pages != nullptr,
                   "a key/value cache needs heads, dims and pages");
    LONGVIEW_CHECK(kv.dtype == DType::kF32 || kv.dtype == DType::kBF16,
                   "keys and values are cached as kF32 or kBF16");
    LONGVIEW_CHECK(p.position >= 0, "a position before the sequence");
    LONGVIEW_CHECK(p.rotary_dim >= 0 && p.rotary_dim % 2 == 0 && p.rotary_dim <= kv.head_dim,
                   "rotary_dim must be even and at most head_dim");
    LONGVIEW_CHECK(p.rotary_dim == 0 || p.theta > 0.0, "theta must be positive");
    const std::int64_t width = static_cast<std::int64_t>(p.heads) * kv.head_dim;
    const std::int64_t kv_width = static_cast<std::int64_t>(kv.kv_heads) * kv.head_dim;
    LONGVIEW_CHECK(p.q.cols == width && p.q.dtype == DType::kBF16,
                   "q must be [n, heads * head_dim] in kBF16");
    LONGVIEW_CHECK(p.k.rows == p.q.rows && p.k.cols == kv_width && p.k.dtype == DType::kBF16,
                   "k must be [n, kv_heads * head_dim] in kBF16");
    LONGVIEW_CHECK(p.v.rows == p.q.rows && p.v.cols == kv_width && p.v.dtype == DType::kBF16,
                   "v must be [n, kv_heads * head_dim] in kBF16");
    LONGVIEW_CHECK(width + 2 * kv_width < std::numeric_limits<std::int32_t>::max() &&
                       p.q.rows <= std::numeric_limits<std::int32_t>::max(),
                   "a row, and the number of rows, must be below 2^31");
    if (p.rotary_dim > 2 * kMostPairs)
        throw Error(Category::kUnsupported,
                    "a rotary embedding of more than 256 dims is not supported on a GPU");
}

/// Pages come from an allocator and are aligned; only the layer's place in them may not be.
bool eight_at_a_time(const RopeAppendParams& p) {
    const auto aligned = [](const void* data, std::int64_t stride) {
        return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
    };
    return aligned(p.q.data, p.q.stride) && aligned(p.k.data, p.k.stride) &&
           aligned(p.v.data, p.v.stride) && p.kv.layer_offset_bytes % 16 == 0 &&
           p.rotary_dim % 16 == 0 && p.kv.head_dim % 8 == 0;
}

template <int kWidth>
void launch_rope(const Context& c, const RopeAppendParams& p, const RopeArgs& args) {
    const int items = (args.heads * args.half + 2 * args.kv_heads * args.head_dim) / kWidth;
    // Several blocks a row where there are few rows.
    const bool few = p.q.rows < 4 * c.device.sm_count;
    const dim3 grid(
        static_cast<unsigned>(p.q.rows),
        few ? static_cast<unsigned>(std::min((items + kThreads - 1) / kThreads, 64)) : 1U);
    if (p.kv.dtype == DType::kBF16) {
        rope_kernel<kWidth, bf16><<<grid, kThreads, 0, c.stream>>>(args);
    } else {
        rope_kernel<kWidth, float><<<grid, kThreads, 0, c.stream>>>(args);
    }
    check_launch("rope_kernel");
}

}  // namespace

void rope_append(const Context& c, const RopeAppendParams& p) {
    if (p.q.rows == 0) return;
    check_rope(p);
    RopeArgs args;
    args.q = static_cast<bf16*>(p.q.data);
    args.k = static_cast<const bf16*>(p.k.data);
    args.v = static_cast<const bf16*>(p.v.data);
    args.q_stride = p.q.stride;
    args.k_stride = p.k.stride;
    args.v_stride = p.v.stride;
    args.heads = p.heads;
    args.kv_heads = p.kv.kv_heads;
    args.head_dim = p.kv.head_dim;
    args.half = p.rotary_dim / 2;
    args.position = p.position;
    args.step = c.step;
    args.pages = p.kv.pages;
    args.page_tokens = p.kv.page_tokens;
    args.layer_offset_bytes = p.kv.layer_offset_bytes;
    for (int i = 0; i < args.half; ++i)
        args.theta[i] = static_cast<float>(std::pow(p.theta, -2.0 * i / p.rotary_dim));
    if (eight_at_a_time(p)) {
        launch_rope<8>(c, p, args);
    } else {
        launch_rope<1>(c, p, args);
    }
}

}  // namespace longview::kernels::cuda

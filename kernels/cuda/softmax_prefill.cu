// Causal grouped-query attention over the paged cache (model-spec 4): checks, the choice between
// many queries (flash.cuh, on Hopper softmax_prefill_sm90.cu) and few (softmax_decode.cu), and the
// launch of the former.
//
// Bound: matrix instructions. 4 * heads * head_dim operations for every key a row sees.
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/cuda/flash.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/softmax_decode.h"
#ifdef LONGVIEW_HAVE_SM90A
#include "kernels/cuda/softmax_prefill_sm90.h"
#endif

namespace longview::kernels::cuda {
namespace {

// Up to here splitting the keys among all multiprocessors matters more than using whole tiles of
// queries.
constexpr std::int64_t kDecodeRows = 48;
#ifdef LONGVIEW_HAVE_SM90A
// From here on.
constexpr std::int64_t kHopperRows = 64;
#endif

void check_softmax(const SoftmaxAttentionParams& p) {
    const KvView& kv = p.kv;
    LONGVIEW_CHECK(kv.kv_heads > 0 && kv.head_dim > 0 && kv.page_tokens > 0 && kv.pages != nullptr,
                   "a key/value cache needs heads, dims and pages");
    const std::int64_t width = static_cast<std::int64_t>(p.heads) * kv.head_dim;
    LONGVIEW_CHECK(p.heads > 0 && p.heads % kv.kv_heads == 0,
                   "query heads must be a multiple of key/value heads");
    LONGVIEW_CHECK(
        p.position >= 0 && p.position + p.q.rows < std::numeric_limits<std::int32_t>::max(),
        "positions must be in [0, 2^31)");
    LONGVIEW_CHECK(kv.page_tokens <= std::numeric_limits<std::int32_t>::max(),
                   "page_tokens must be below 2^31");
    LONGVIEW_CHECK(p.scale > 0.0F, "the scale of scores must be positive");
    LONGVIEW_CHECK(p.q.cols == width && p.q.dtype == DType::kBF16,
                   "q must be [n, heads * head_dim] in kBF16");
    LONGVIEW_CHECK(p.out.rows == p.q.rows && p.out.cols == width && p.out.dtype == DType::kBF16,
                   "out must be [n, heads * head_dim] in kBF16");
    if (kv.dtype != DType::kBF16)
        throw Error(Category::kUnsupported,
                    std::string("attention on a GPU needs a key/value cache in BF16, not ") +
                        dtype_name(kv.dtype));
    if (kv.head_dim != 64 && kv.head_dim != 128)
        throw Error(Category::kUnsupported,
                    "attention on a GPU supports heads of 64 or 128 dims, not " +
                        std::to_string(kv.head_dim));
}

template <int kDim>
void softmax_prefill(const Context& c, const SoftmaxAttentionParams& p) {
    FlashArgs args;
    args.q = static_cast<const bf16*>(p.q.data);
    args.q_stride = p.q.stride;
    args.out = static_cast<bf16*>(p.out.data);
    args.out_stride = p.out.stride;
    args.rows = static_cast<int>(p.q.rows);
    args.position = p.position;
    args.step = c.step;
    args.scale_log2 = p.scale * kLog2E;
    args.group = p.heads / p.kv.kv_heads;
#ifdef LONGVIEW_HAVE_SM90A
    if (c.device.compute == 90 && p.q.rows >= kHopperRows && fits_sm90(args, p.kv)) {
        softmax_prefill_sm90(c, args, p.kv);
        return;
    }
#endif
    if (fast_pages(p.kv, kFlashKeys)) {
        launch_flash<kDim, true>(c, args, PagedKv<true>(p.kv), p.kv.kv_heads, 1);
    } else {
        launch_flash<kDim, true>(c, args, PagedKv<false>(p.kv), p.kv.kv_heads, 1);
    }
}

}  // namespace

void softmax_attention(const Context& c, const SoftmaxAttentionParams& p) {
    if (p.q.rows == 0) return;
    check_softmax(p);
    if (p.q.rows <= kDecodeRows) {
        softmax_decode(c, p);
    } else if (p.kv.head_dim == 64) {
        softmax_prefill<64>(c, p);
    } else {
        softmax_prefill<128>(c, p);
    }
}

}  // namespace longview::kernels::cuda

// Rotary embedding, the paged cache and softmax attention against the CPU backend, which computes
// in fp32 on the same bf16 values. What differs is the rounding of probabilities (2^-9 each) and of
// the result (2^-9): some 1.6e-3 of the norm, hence the bound.
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/ops.h"
#include "tests/gpu/device_rows.h"
#include "tests/gpu/gpu_test.h"

using namespace longview;
using namespace longview::gpu_test;
using namespace longview::kernels;

namespace {

constexpr double kBound = 5e-3;

struct Heads {
    int heads;
    int kv_heads;
    int dim;

    std::int64_t width() const { return std::int64_t{heads} * dim; }
    std::int64_t kv_width() const { return std::int64_t{kv_heads} * dim; }
    std::string name() const {
        return std::to_string(heads) + "/" + std::to_string(kv_heads) + "x" + std::to_string(dim);
    }
};

Matrix host_matrix(std::vector<float>& values, std::int64_t rows) {
    const auto cols = static_cast<std::int64_t>(values.size()) / rows;
    return {values.data(), DType::kF32, rows, cols, cols};
}

// ---- rope

struct Rope {
    Heads heads;
    int rotary_dim;
    std::int64_t rows;
    std::int64_t position;
    std::int64_t page_tokens = 256;
    std::int64_t layer_offset_bytes = 512;
    std::int64_t gap = 0;  // after each row of q, k and v
    std::size_t shift_bytes = 0;
    DType cache = DType::kBF16;
    bool step = false;  // the position comes from device memory
};

void check_rope(Device& device, const Rope& r) {
    Random random(static_cast<std::uint64_t>(r.position + r.rows));
    std::vector<float> q = random.normals_bf16(r.rows * r.heads.width());
    std::vector<float> k = random.normals_bf16(r.rows * r.heads.kv_width());
    std::vector<float> v = random.normals_bf16(r.rows * r.heads.kv_width());
    const DeviceRows device_q(r.rows, r.heads.width(), q, r.gap, r.shift_bytes);
    const DeviceRows device_k(r.rows, r.heads.kv_width(), k, r.gap, r.shift_bytes);
    const DeviceRows device_v(r.rows, r.heads.kv_width(), v, r.gap, r.shift_bytes);
    PagedCache cache({r.page_tokens, r.heads.kv_heads, r.heads.dim, r.layer_offset_bytes, r.cache},
                     r.position, r.rows);
    RopeAppendParams p;
    p.q = device_q.view();
    p.k = device_k.view();
    p.v = device_v.view();
    p.heads = r.heads.heads;
    p.rotary_dim = r.rotary_dim;
    p.theta = 1e7;
    p.position = r.step ? 0 : r.position;
    p.kv = cache.device();
    cuda::rope_append(r.step ? device.step_context(r.position, 0) : device.context(), p);
    device.finish();

    const std::vector<float> v_before = v;
    p.q = host_matrix(q, r.rows);
    p.k = host_matrix(k, r.rows);
    p.v = host_matrix(v, r.rows);
    p.position = r.position;
    p.kv = cache.host();
    device.cpu().rope_append(p);
    const std::string where =
        r.heads.name() + " n=" + std::to_string(r.rows) + " at " + std::to_string(r.position) + " ";
    expect_close(where + "q", device_q.read(), q, kBound);
    const PagedCache::Contents c = cache.contents(r.rows);
    expect_close(where + "keys", c.device_keys, c.host_keys, kBound);
    expect(c.device_values == c.host_values, where + "values are not what they were");
    expect(device_k.read() == k && device_v.read() == v_before, where + "inputs were changed");
}

// ---- attention

struct Attention {
    Heads heads;
    std::int64_t rows;
    std::int64_t position;
    std::int64_t page_tokens = 256;
    float size = 1.0F;  // of queries and keys
    std::int64_t layer_offset_bytes = 512;
    std::int64_t gap = 0;
    std::size_t shift_bytes = 0;
    bool step = false;
    bool portable = false;  // the kernels for every GPU, where there are special ones for this one

    std::string name() const {
        return (portable ? "portable " : "") + heads.name() + " n=" + std::to_string(rows) +
               " at " + std::to_string(position) + " page " + std::to_string(page_tokens);
    }
};

/// Queries and a filled cache, and both forms of the operator over them.
class Attend {
  public:
    Attend(Device& device, const Attention& a)
        : device_(device),
          a_(a),
          random_(static_cast<std::uint64_t>(a.rows * 10007 + a.position)),
          q_(random_.normals_bf16(a.rows * a.heads.width(), a.size)),
          cache_({a.page_tokens, a.heads.kv_heads, a.heads.dim, a.layer_offset_bytes}, 0,
                 a.position + a.rows),
          device_q_(a.rows, a.heads.width(), q_, a.gap, a.shift_bytes) {
        cache_.fill(random_, a.position + a.rows, a.size);
    }

    /// Rows [first, first + count) of the problem, in one call.
    std::vector<float> on_device(std::int64_t first, std::int64_t count) {
        const DeviceRows out(count, a_.heads.width(), a_.gap, a_.shift_bytes);
        SoftmaxAttentionParams p = params();
        p.q = ConstMatrix(device_q_.view()).slice(first, count);
        p.out = out.view();
        p.kv = cache_.device();
        p.position = a_.step ? 0 : a_.position + first;
        cuda::Context context =
            a_.step ? device_.step_context(a_.position + first, 0) : device_.context();
        if (a_.portable) context.device.compute = 80;
        cuda::softmax_attention(context, p);
        device_.finish();
        return out.read();
    }
    std::vector<float> on_host() {
        std::vector<float> out(q_.size());
        SoftmaxAttentionParams p = params();
        p.q = host_matrix(q_, a_.rows);
        p.out = host_matrix(out, a_.rows);
        p.kv = cache_.host();
        p.position = a_.position;
        device_.cpu().softmax_attention(p);
        return out;
    }

  private:
    SoftmaxAttentionParams params() const {
        SoftmaxAttentionParams p;
        p.heads = a_.heads.heads;
        p.scale = 1.0F / std::sqrt(static_cast<float>(a_.heads.dim));
        return p;
    }

    Device& device_;
    Attention a_;
    Random random_;
    std::vector<float> q_;
    PagedCache cache_;
    DeviceRows device_q_;
};

void check_attention(Device& device, const Attention& a) {
    Attend attend(device, a);
    expect_close(a.name(), attend.on_device(0, a.rows), attend.on_host(), kBound);
}

Category category_of(const std::function<void()>& run) {
    try {
        run();
    } catch (const Error& e) {
        return e.category();
    }
    throw std::runtime_error("nothing was thrown");
}

// ---- cases

constexpr Heads kDemo = {4, 2, 64};
constexpr Heads kOneKvHead = {8, 1, 128};
constexpr Heads kReal = {64, 8, 128};

void add_rope_cases(std::vector<Case>& cases) {
    for (const std::int64_t position : {0, 1, 12345, 4000000})
        cases.push_back({"rope at " + std::to_string(position), [=](Device& d) {
                             for (const std::int64_t rows : {1, 2, 37}) {
                                 check_rope(d, {kReal, 64, rows, position});
                                 check_rope(d, {kDemo, 32, rows, position, 7});
                             }
                         }});
    cases.push_back({"rope with the position in device memory", [](Device& d) {
                         for (const std::int64_t position : {0, 255, 4000000}) {
                             Rope r{kReal, 64, 1, position};
                             r.step = true;
                             check_rope(d, r);
                         }
                     }});
    cases.push_back({"rope of many rows", [](Device& d) { check_rope(d, {kDemo, 32, 2000, 77}); }});
    cases.push_back({"rope without alignment", [](Device& d) {
                         check_rope(d, {kDemo, 32, 19, 5, 16, 512, 3, 2});
                         check_rope(d, {kDemo, 32, 19, 5, 16, 6, 0, 0});
                     }});
    cases.push_back({"rope of other sizes", [](Device& d) {
                         check_rope(d, {{3, 1, 12}, 8, 9, 30, 4});
                         check_rope(d, {{3, 3, 16}, 0, 9, 30, 4});
                         check_rope(d, {{2, 1, 256}, 256, 9, 30, 4});
                     }});
    cases.push_back({"rope into a cache of floats", [](Device& d) {
                         Rope r{kReal, 64, 5, 254};
                         r.cache = DType::kF32;
                         check_rope(d, r);
                         r.gap = 1;
                         check_rope(d, r);
                     }});
}

void add_prefill_cases(std::vector<Case>& cases) {
    for (const Heads& heads : {kDemo, kOneKvHead, kReal})
        for (const std::int64_t page : {256, 16, 7})
            cases.push_back(
                {"prefill " + heads.name() + " page " + std::to_string(page), [=](Device& d) {
                     for (const std::int64_t rows :
                          {1, 2, 3, 4, 5, 6, 7, 8, 9, 33, 63, 64, 65, 127, 129, 200, 513})
                         for (const std::int64_t position : {0, 1, 63, 255, 256, 1000})
                             if (heads.heads < 64 || (rows <= 65 && position % 5 == 0))
                                 check_attention(d, {heads, rows, position, page});
                 }});
    // Whole tiles of 128 rows and keys, and their edges.
    for (const bool portable : {false, true})
        cases.push_back(
            {portable ? "prefill in tiles, portable" : "prefill in tiles", [=](Device& d) {
                 const auto check = [&](const Heads& heads, std::int64_t rows,
                                        std::int64_t position, std::int64_t page = 256) {
                     Attention a{heads, rows, position, page};
                     a.portable = portable;
                     check_attention(d, a);
                 };
                 for (const std::int64_t rows : {64, 65, 127, 128, 129, 191, 192, 193, 256, 640})
                     for (const std::int64_t position :
                          {0, 1, 27, 63, 64, 100, 127, 128, 129, 1000})
                         check(kOneKvHead, rows, position);
                 for (const std::int64_t page : {128, 512, 4096}) check(kOneKvHead, 300, 77, page);
                 check({3, 3, 128}, 200, 50);
                 check(kReal, 130, 300);
                 Attention large{kOneKvHead, 200, 100, 256, 8.0F};
                 large.portable = portable;
                 check_attention(d, large);
                 Attention spaced{kOneKvHead, 200, 100, 256, 1.0F, 512, 8};
                 spaced.portable = portable;
                 check_attention(d, spaced);
                 Attention step{kOneKvHead, 70, 300};
                 step.portable = portable;
                 step.step = true;
                 check_attention(d, step);
             }});
    cases.push_back({"prefill gives the same bits again", [](Device& d) {
                         Attend attend(d, {kReal, 700, 1500});
                         const std::vector<float> first = attend.on_device(0, 700);
                         for (int i = 0; i < 10; ++i)
                             expect(attend.on_device(0, 700) == first, "other bits in another run");
                     }});
    cases.push_back({"prefill with other pages", [](Device& d) {
                         for (const std::int64_t page : {1, 48, 64, 192, 512})
                             check_attention(d, {kDemo, 150, 77, page});
                     }});
    cases.push_back({"prefill with large logits", [](Device& d) {
                         for (const std::int64_t rows : {9, 200})
                             for (const Heads& heads : {kDemo, kOneKvHead})
                                 check_attention(d, {heads, rows, 100, 256, 8.0F});
                     }});
    cases.push_back({"prefill without alignment", [](Device& d) {
                         for (const Heads& heads : {kDemo, kOneKvHead}) {
                             check_attention(d, {heads, 130, 5, 256, 1.0F, 512, 3, 2});
                             check_attention(d, {heads, 130, 5, 256, 1.0F, 512, 0, 6});
                             check_attention(d, {heads, 130, 5, 256, 1.0F, 510});
                         }
                     }});
    cases.push_back({"prefill with the position in device memory", [](Device& d) {
                         Attention a{kDemo, 70, 300};
                         a.step = true;
                         check_attention(d, a);
                     }});
    cases.push_back({"prefill rows do not depend on the others", [](Device& d) {
                         for (const Heads& heads : {kDemo, kOneKvHead}) {
                             Attend attend(d, {heads, 300, 21});
                             const std::vector<float> whole = attend.on_device(0, 300);
                             const std::vector<float> part = attend.on_device(50, 99);
                             const auto first = static_cast<std::ptrdiff_t>(50 * heads.width());
                             expect(std::equal(part.begin(), part.end(), whole.begin() + first),
                                    heads.name() + ": other bits in another call");
                         }
                     }});
    cases.push_back({"split prompt", [](Device& d) {
                         Attend attend(d, {kOneKvHead, 300, 0});
                         const std::vector<float> whole = attend.on_device(0, 300);
                         std::vector<float> parts;
                         std::int64_t first = 0;
                         for (const std::int64_t count : {130, 1, 8, 64, 97}) {
                             const std::vector<float> part = attend.on_device(first, count);
                             parts.insert(parts.end(), part.begin(), part.end());
                             first += count;
                         }
                         expect_close("split against whole", parts, whole, kBound);
                     }});
}

void add_decode_cases(std::vector<Case>& cases) {
    for (const Heads& heads : {kReal, kDemo, kOneKvHead, Heads{6, 2, 64}, Heads{3, 3, 128}})
        for (const bool step : {false, true})
            cases.push_back(
                {"decode " + heads.name() + (step ? " in a recorded step" : ""), [=](Device& d) {
                     for (const std::int64_t keys : {1, 2, 63, 255, 256, 257, 1000, 5000})
                         for (const std::int64_t page : {256, 7}) {
                             Attention a{heads, 1, keys - 1, page};
                             a.step = step;
                             check_attention(d, a);
                         }
                 }});
    cases.push_back({"decode of several rows", [](Device& d) {
                         for (const Heads& heads : {kReal, kDemo, Heads{3, 3, 128}})
                             for (const std::int64_t rows : {2, 3, 8})
                                 for (const std::int64_t position : {0, 60, 63, 5000})
                                     check_attention(d, {heads, rows, position, 16});
                     }});
    cases.push_back({"decode with large logits", [](Device& d) {
                         for (const Heads& heads : {kReal, kDemo})
                             check_attention(d, {heads, 1, 3000, 256, 8.0F});
                     }});
    cases.push_back({"decode without alignment", [](Device& d) {
                         check_attention(d, {kDemo, 1, 700, 256, 1.0F, 512, 3, 2});
                         check_attention(d, {kDemo, 3, 700, 256, 1.0F, 510, 3, 2});
                         check_attention(d, {kReal, 1, 700, 48, 1.0F, 512, 0, 4});
                     }});
    cases.push_back({"decode gives the same bits again", [](Device& d) {
                         Attend attend(d, {kReal, 1, 20000});
                         const std::vector<float> first = attend.on_device(0, 1);
                         for (int i = 0; i < 5; ++i)
                             expect(attend.on_device(0, 1) == first, "other bits in another run");
                     }});
}

void add_refusal_cases(std::vector<Case>& cases) {
    cases.push_back({"attention of zero rows", [](Device& d) {
                         cuda::softmax_attention(d.context(), SoftmaxAttentionParams{});
                         cuda::rope_append(d.context(), RopeAppendParams{});
                         d.finish();
                     }});
    cases.push_back({"attention refuses what it cannot do", [](Device& d) {
                         const auto refused = [&](const Heads& heads) {
                             Attend attend(d, {heads, 2, 3});
                             return category_of([&] { attend.on_device(0, 2); });
                         };
                         expect(refused({2, 1, 96}) == Category::kUnsupported, "heads of 96 dims");
                         expect(refused({3, 2, 64}) == Category::kBug, "3 heads of 2 groups");
                     }});
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<Case> cases;
    add_rope_cases(cases);
    add_prefill_cases(cases);
    add_decode_cases(cases);
    add_refusal_cases(cases);
    return run_cases(argc, argv, cases);
}

#include "llm/store/weight_store.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <string>
#include <utility>

namespace longview::llm {
namespace {

constexpr const char* kPrefix = "language_model.model.";

std::vector<std::int32_t> find_zero_rows(const WeightView& table) {
    std::vector<std::int32_t> zero;
    const std::size_t row_bytes = static_cast<std::size_t>(table.cols) * size_of(table.dtype);
    for (std::int64_t r = 0; r < table.rows; ++r) {
        // -0.0 does not occur in published weights; a row of it would be trained to be so.
        const std::byte* row = table.row(r);
        if (std::all_of(row, row + row_bytes, [](std::byte b) { return b == std::byte{0}; }))
            zero.push_back(static_cast<std::int32_t>(r));
    }
    return zero;
}

}  // namespace

std::vector<float> lightning_slopes(int heads, int layer, int num_layers) {
    LONGVIEW_CHECK(num_layers > 1, "the decay factor needs at least two layers");
    const double factor = 1.0 - static_cast<double>(layer) / (num_layers - 1) + 1e-5;
    std::vector<float> slopes(static_cast<std::size_t>(heads));
    for (int h = 0; h < heads; ++h) {
        slopes[static_cast<std::size_t>(h)] =
            static_cast<float>(std::exp2(-8.0 * (h + 1) / heads) * factor);
    }
    return slopes;
}

struct WeightStore::Impl {
    kernels::Backend& backend;
    const ModelConfig& config;
    const WeightSource& source;
    std::vector<LayerWeights> layers;
    std::vector<std::vector<kernels::ExpertWeights>> experts;
    std::vector<Buffer> owned;
    WeightView embedding;
    WeightView head;
    const float* final_norm = nullptr;
    std::vector<std::int32_t> zero_rows;
    std::uint64_t allocated = 0;
    std::uint64_t borrowed = 0;

    const void* keep(Buffer buffer) {
        allocated += buffer.size_bytes();
        owned.push_back(std::move(buffer));
        return owned.back().data();
    }
    WeightView matrix(const std::string& name) {
        const WeightView host = source.tensor(name).as_weight();
        return keep_placed(backend.place(host), host);
    }
    /// Counts as borrowed what the backend uses where it lay.
    WeightView keep_placed(kernels::Weight placed, const WeightView& host) {
        if (placed.view.data == host.data) borrowed += host.size_bytes();
        if (placed.owner) keep(std::move(placed.owner));
        return placed.view;
    }
    const float* floats(const std::string& name) {
        return static_cast<const float*>(
            keep(backend.place_floats(source.tensor(name).as_weight())));
    }
    const float* upload(const std::vector<float>& values) {
        Buffer buffer = backend.allocate(values.size() * sizeof(float));
        backend.copy_in(buffer.data(), values.data(), values.size() * sizeof(float));
        return static_cast<const float*>(keep(std::move(buffer)));
    }

    LayerWeights load_attention(int l, const std::string& p) {
        LayerWeights w;
        w.kind = config.text.attn_type_list[static_cast<std::size_t>(l)];
        w.input_norm = floats(p + "input_layernorm.weight");
        w.post_attention_norm = floats(p + "post_attention_layernorm.weight");
        const std::string attention = p + "self_attn.";
        if (w.kind == AttentionKind::kLightning) {
            w.qkv = matrix(attention + "qkv_proj.weight");
            w.output_gate = matrix(attention + "output_gate.weight");
            w.attention_norm = floats(attention + "norm.weight");
            w.slopes = upload(lightning_slopes(config.text.num_attention_heads, l,
                                               config.text.num_hidden_layers));
            w.out = matrix(attention + "out_proj.weight");
        } else {
            w.q = matrix(attention + "q_proj.weight");
            w.k = matrix(attention + "k_proj.weight");
            w.v = matrix(attention + "v_proj.weight");
            w.out = matrix(attention + "o_proj.weight");
        }
        return w;
    }

    void load_layer(int l) {
        const std::string p = std::string(kPrefix) + "layers." + std::to_string(l) + ".";
        LayerWeights w = load_attention(l, p);
        const std::string moe = p + "block_sparse_moe.";
        // The router decides on small differences: fp32, whatever it was stored as (D9).
        w.router.data = floats(moe + "gate.weight");
        w.router.dtype = DType::kF32;
        w.router.rows = config.text.num_local_experts;
        w.router.cols = config.text.hidden_size;
        std::vector<kernels::ExpertWeights>& list = experts[static_cast<std::size_t>(l)];
        for (int e = 0; e < config.text.num_local_experts; ++e) {
            const std::string name = moe + "experts." + std::to_string(e) + ".";
            // Gate and up read the same rows.
            const WeightView both[] = {source.tensor(name + "w1.weight").as_weight(),
                                       source.tensor(name + "w3.weight").as_weight()};
            std::vector<kernels::Weight> placed = backend.place_together(both);
            const WeightView w1 = keep_placed(std::move(placed[0]), both[0]);
            const WeightView w3 = keep_placed(std::move(placed[1]), both[1]);
            list.push_back({w1, w3, matrix(name + "w2.weight")});
        }
        w.experts = list;
        layers.push_back(w);
    }
};

WeightStore::WeightStore(kernels::Backend& backend, const ModelConfig& config,
                         const WeightSource& source, const std::function<void(double)>& progress)
    : impl_(new Impl{.backend = backend, .config = config, .source = source}) {
    const int count = config.text.num_hidden_layers;
    impl_->experts.resize(static_cast<std::size_t>(count));
    for (int l = 0; l < count; ++l) {
        impl_->load_layer(l);
        if (progress) progress(static_cast<double>(l + 1) / (count + 1));
    }
    const std::string table = std::string(kPrefix) + "embed_tokens.weight";
    impl_->zero_rows = find_zero_rows(source.tensor(table).as_weight());
    impl_->embedding = impl_->matrix(table);
    impl_->head = impl_->matrix("language_model.lm_head.weight");
    impl_->final_norm = impl_->floats(std::string(kPrefix) + "norm.weight");
    backend.synchronize();
    if (progress) progress(1.0);
}

WeightStore::~WeightStore() = default;

const LayerWeights& WeightStore::layer(int index) const {
    return impl_->layers.at(static_cast<std::size_t>(index));
}
WeightView WeightStore::embedding() const {
    return impl_->embedding;
}
WeightView WeightStore::head() const {
    return impl_->head;
}
const float* WeightStore::final_norm() const {
    return impl_->final_norm;
}
std::span<const std::int32_t> WeightStore::zero_rows() const {
    return impl_->zero_rows;
}
std::uint64_t WeightStore::allocated_bytes() const {
    return impl_->allocated;
}
std::uint64_t WeightStore::borrowed_bytes() const {
    return impl_->borrowed;
}

}  // namespace longview::llm

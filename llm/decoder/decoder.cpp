#include "llm/decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "llm/decoder/cost.h"
#include "llm/decoder/workspace.h"

namespace longview::llm {
namespace {

using kernels::Activation;
using kernels::LinearOutput;
using kernels::Norm;

}  // namespace

struct Decoder::Impl {
    kernels::Backend& backend;
    const ModelConfig& config;
    const TextConfig& text;
    const WeightStore& weights;
    DecoderOptions options;
    DType activation;
    Workspace step_space;   // one row, for step()
    Buffer step_row;        // [1, hidden]
    Buffer logits;          // [vocab] kF32
    std::vector<int> slot;  // index of each layer among the layers of its kind

    Impl(kernels::Backend& b, const ModelConfig& c, const WeightStore& w, DecoderOptions o)
        : backend(b),
          config(c),
          text(c.text),
          weights(w),
          options(std::move(o)),
          activation(b.activation_dtype()),
          step_space(b, c.text, 1),
          step_row(b.allocate(static_cast<std::size_t>(c.text.hidden_size) * size_of(activation))),
          logits(b.allocate(static_cast<std::size_t>(c.text.vocab_size) * sizeof(float))) {
        LONGVIEW_CHECK(options.chunk_tokens > 0 && options.super_chunk_tokens > 0,
                       "chunks hold at least one token");
        int lightning = 0;
        int softmax = 0;
        for (const AttentionKind kind : text.attn_type_list)
            slot.push_back(kind == AttentionKind::kLightning ? lightning++ : softmax++);
    }

    Matrix rows_of(const Buffer& buffer, std::int64_t rows) const {
        return {buffer.data(), activation, rows, text.hidden_size, text.hidden_size};
    }

    /// x = alpha u + beta Lightning(u), u = RMSNorm(x), for rows at `position`.
    void lightning_layer(const LayerWeights& w, SequenceState& state, int index,
                         std::int64_t position, Matrix x, const Workspace& s) const {
        const std::int64_t n = x.rows;
        const LinearOutput outputs[] = {
            {.weight = w.qkv, .activation = Activation::kSilu, .out = s.projected(n)},
            {.weight = w.output_gate, .activation = Activation::kSigmoid, .out = s.gate(n)}};
        backend.norm_linear({.x = x,
                             .norm = Norm::kRms,
                             .gain = w.input_norm,
                             .eps = text.rms_norm_eps,
                             .normed = s.normed(n),
                             .outputs = outputs});
        backend.lightning_attention({.qkv = s.projected(n),
                                     .heads = text.num_attention_heads,
                                     .head_dim = text.head_dim,
                                     .slopes = w.slopes,
                                     .state = state.lightning(index),
                                     .position = position,
                                     .out = s.attention(n)});
        backend.linear_residual({.in = s.attention(n),
                                 .norm_gain = w.attention_norm,
                                 .norm_eps = kLightningNormEps,
                                 .gate = s.gate(n),
                                 .weight = w.out,
                                 .skip = s.normed(n),
                                 .alpha = text.layernorm_linear_attention_alpha,
                                 .beta = text.layernorm_linear_attention_beta,
                                 .out = x});
    }

    /// x = alpha u + beta Softmax(u), u = RMSNorm(x), for rows at `position`.
    void softmax_layer(const LayerWeights& w, SequenceState& state, int index,
                       std::int64_t position, Matrix x, const Workspace& s) const {
        const std::int64_t n = x.rows;
        const LinearOutput outputs[] = {{.weight = w.q, .out = s.query(n)},
                                        {.weight = w.k, .out = s.key(n)},
                                        {.weight = w.v, .out = s.value(n)}};
        backend.norm_linear({.x = x,
                             .norm = Norm::kRms,
                             .gain = w.input_norm,
                             .eps = text.rms_norm_eps,
                             .normed = s.normed(n),
                             .outputs = outputs});
        const kernels::KvView kv = state.kv(index);
        backend.rope_append({.q = s.query(n),
                             .k = s.key(n),
                             .v = s.value(n),
                             .heads = text.num_attention_heads,
                             .rotary_dim = text.rotary_dim,
                             .theta = text.rope_theta,
                             .position = position,
                             .kv = kv});
        backend.softmax_attention({.q = s.query(n),
                                   .heads = text.num_attention_heads,
                                   .scale = 1.0F / std::sqrt(static_cast<float>(text.head_dim)),
                                   .position = position,
                                   .kv = kv,
                                   .out = s.attention(n)});
        backend.linear_residual({.in = s.attention(n),
                                 .weight = w.out,
                                 .skip = s.normed(n),
                                 .alpha = text.layernorm_full_attention_alpha,
                                 .beta = text.layernorm_full_attention_beta,
                                 .out = x});
    }

    void attention(int l, const LayerWeights& w, SequenceState& state, std::int64_t position,
                   Matrix x, const Workspace& s) const {
        const int index = slot[static_cast<std::size_t>(l)];
        if (w.kind == AttentionKind::kLightning) {
            lightning_layer(w, state, index, position, x, s);
        } else {
            softmax_layer(w, state, index, position, x, s);
        }
    }

    /// x = alpha v + beta MoE(v), v = RMSNorm(x).
    void feed_forward(const LayerWeights& w, Matrix x, const Workspace& s) const {
        const std::int64_t n = x.rows;
        backend.route({.x = x,
                       .gain = w.post_attention_norm,
                       .eps = text.rms_norm_eps,
                       .normed = s.normed(n),
                       .gate = w.router,
                       .top_k = text.num_experts_per_tok,
                       .ids = s.expert_ids(),
                       .weights = s.expert_weights()});
        backend.experts({.x = s.normed(n),
                         .top_k = text.num_experts_per_tok,
                         .ids = s.expert_ids(),
                         .weights = s.expert_weights(),
                         .experts = w.experts,
                         .alpha = text.layernorm_mlp_alpha,
                         .beta = text.layernorm_mlp_beta,
                         .out = x});
    }

    void head(Matrix last_row) const {
        const Matrix out{logits.data(), DType::kF32, 1, text.vocab_size, text.vocab_size};
        const LinearOutput outputs[] = {{.weight = weights.head(), .out = out}};
        backend.norm_linear({.x = last_row,
                             .norm = Norm::kRms,
                             .gain = weights.final_norm(),
                             .eps = text.rms_norm_eps,
                             .outputs = outputs});
    }

    /// `begin` plus about `length`, at a multiple of the lightning tile beyond it: there an end
    /// does not change the arithmetic.
    static std::int64_t tile_end(std::int64_t begin, std::int64_t length) {
        constexpr std::int64_t kTile = kernels::kLightningTile;
        return std::max((begin + length) / kTile * kTile, (begin / kTile + 1) * kTile);
    }

    /// Ends of the kernel chunks of [begin, end): multiples of the lightning tile, so that chunk
    /// sizes do not change the arithmetic, and the cuts.
    std::int64_t chunk_end(std::int64_t begin, std::int64_t end,
                           const std::vector<std::int64_t>& cuts) const {
        const std::int64_t next = std::min(tile_end(begin, options.chunk_tokens), end);
        const auto cut = std::upper_bound(cuts.begin(), cuts.end(), begin);
        return cut == cuts.end() ? next : std::min(next, *cut);
    }

    void copy_lightning(SequenceState& to, SequenceState& from, int index) const {
        const auto heads = static_cast<std::size_t>(text.num_attention_heads);
        const auto dim = static_cast<std::size_t>(text.head_dim);
        backend.copy(to.lightning(index), from.lightning(index), heads * dim * dim * sizeof(float));
    }

    void fill_rows(const PrefillInput& input, std::int64_t offset, Matrix x) const {
        backend.embed(
            weights.embedding(),
            input.ids.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(x.rows)),
            x);
        for (const RowsAt& r : input.rows) {
            const std::int64_t begin = std::max(r.index, offset);
            const std::int64_t end = std::min(r.index + r.rows.rows, offset + x.rows);
            if (begin >= end) continue;
            LONGVIEW_CHECK(r.rows.stride == x.stride && r.rows.dtype == x.dtype,
                           "inserted rows lie as the residual stream does");
            backend.copy(x.row(begin - offset), r.rows.row(begin - r.index),
                         static_cast<std::size_t>((end - begin) * x.stride) * size_of(x.dtype));
        }
    }
};

Decoder::Decoder(kernels::Backend& backend, const ModelConfig& config, const WeightStore& weights,
                 DecoderOptions options)
    : impl_(std::make_unique<Impl>(backend, config, weights, std::move(options))) {}

Decoder::~Decoder() = default;

SequenceState Decoder::new_state() const {
    return {impl_->backend, make_state_layout(impl_->text, impl_->backend.kv_dtype())};
}

std::size_t Decoder::workspace_bytes(std::int64_t tokens) const {
    constexpr std::int64_t kTile = kernels::kLightningTile;
    const std::int64_t super_chunk = std::min(tokens, impl_->options.super_chunk_tokens + kTile);
    const std::int64_t chunk = std::min(tokens, impl_->options.chunk_tokens + kTile);
    return static_cast<std::size_t>(super_chunk * impl_->text.hidden_size) *
               size_of(impl_->activation) +
           Workspace::bytes(impl_->text, impl_->activation, chunk);
}

PrefillResult Decoder::prefill(SequenceState& state, const PrefillInput& input) {
    Impl& m = *impl_;
    const auto total = static_cast<std::int64_t>(input.ids.size());
    LONGVIEW_CHECK(total > 0, "a prefill reads at least one token");
    const std::int64_t start = state.position();
    const std::vector<std::int64_t>& cuts = input.cuts;
    const std::vector<std::int64_t>& copies = input.checkpoints;
    LONGVIEW_CHECK(std::is_sorted(cuts.begin(), cuts.end()) &&
                       (cuts.empty() || (cuts.front() > start && cuts.back() <= start + total)),
                   "cuts lie inside the text to read");
    LONGVIEW_CHECK(std::includes(cuts.begin(), cuts.end(), copies.begin(), copies.end()),
                   "checkpoints are cuts");

    SequenceState work = state.fork();
    work.prepare(total);
    PrefillResult result;
    for (const std::int64_t at : copies) result.checkpoints.push_back(work.branch_at(at));

    constexpr std::int64_t kTile = kernels::kLightningTile;
    const Buffer stream = m.backend.allocate(
        static_cast<std::size_t>(std::min(total, m.options.super_chunk_tokens + kTile) *
                                 m.text.hidden_size) *
        size_of(m.activation));
    const Workspace space(m.backend, m.text, std::min(total, m.options.chunk_tokens + kTile));
    double done = 0.0;

    for (std::int64_t first = start, end = start; first < start + total; first = end) {
        end = std::min(Impl::tile_end(first, m.options.super_chunk_tokens), start + total);
        const Matrix x = m.rows_of(stream, end - first);
        m.fill_rows(input, first - start, x);
        for (int l = 0; l < m.text.num_hidden_layers; ++l) {
            const LayerWeights& w = m.weights.layer(l);
            for (std::int64_t at = first; at < end;) {
                const std::int64_t stop = m.chunk_end(at, end, cuts);
                const Matrix rows = x.slice(at - first, stop - at);
                m.attention(l, w, work, at, rows, space);
                m.feed_forward(w, rows, space);
                const auto copy = std::lower_bound(copies.begin(), copies.end(), stop);
                if (w.kind == AttentionKind::kLightning && copy != copies.end() && *copy == stop)
                    m.copy_lightning(
                        result.checkpoints[static_cast<std::size_t>(copy - copies.begin())], work,
                        m.slot[static_cast<std::size_t>(l)]);
                if (m.options.layer_tap) m.options.layer_tap(l, at, rows);
                done += layer_work(m.text, w.kind, at, stop - at);
                if (input.progress) input.progress(done);
                at = stop;
            }
        }
        if (end == start + total) m.head(x.slice(end - first - 1, 1));
    }
    result.logits = m.logits.as<float>();
    m.backend.synchronize();
    work.advance(total);
    state = std::move(work);
    return result;
}

const float* Decoder::step(SequenceState& state, std::int32_t id) {
    Impl& m = *impl_;
    const Matrix x = m.rows_of(m.step_row, 1);
    const kernels::StepCall call{
        .id = id, .position = state.position(), .memory = state.memory_id()};
    m.backend.step(call, [&] {
        m.backend.embed(m.weights.embedding(), {&id, 1}, x);
        for (int l = 0; l < m.text.num_hidden_layers; ++l) {
            const LayerWeights& w = m.weights.layer(l);
            m.attention(l, w, state, state.position(), x, m.step_space);
            m.feed_forward(w, x, m.step_space);
        }
        m.head(x);
    });
    state.advance(1);
    return m.logits.as<float>();
}

}  // namespace longview::llm

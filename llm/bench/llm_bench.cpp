// Speed of the decoder at the real layer sizes, on random weights made on the device: the first
// layers of MiniMax-VL-01 (by default one period of 7 lightning layers and 1 softmax layer, 45.7 B
// parameters, 91 GB in bf16), scaled to its 80 layers. Links neither Qt nor OpenCV.
//
//   llm-bench [--layers N] [--lengths N,N,...] [--contexts N,N,...] [--steps N] [--json FILE]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "llm/decoder/decoder.h"
#include "llm/store/weight_store.h"

namespace longview::llm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRealLayers = 80;
constexpr std::int64_t kPrefillRounds = 3;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::uint16_t bf16_bits(float value) {
    std::uint32_t bits = 0;
    static_assert(sizeof(bits) == sizeof(value));
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

class Random {
  public:
    float normal() {  // sum of four uniform numbers, variance 1
        float sum = 0.0F;
        for (int i = 0; i < 4; ++i) {
            state_ = state_ * 6364136223846793005U + 1442695040888963407U;
            sum += static_cast<float>(state_ >> 40) * 0x1p-23F - 1.0F;
        }
        return sum * 0.8660254F;
    }

  private:
    std::uint64_t state_ = 1;
};

/// Model-spec 1.1, with `layers` layers and a small vocabulary: its rows are not what is measured.
ModelConfig real_config(int layers) {
    ModelConfig c;
    TextConfig& t = c.text;
    t.hidden_size = 6144;
    t.num_hidden_layers = layers;
    t.num_attention_heads = 64;
    t.num_key_value_heads = 8;
    t.head_dim = 128;
    t.rotary_dim = 64;
    t.rope_theta = 1e7;
    t.intermediate_size = 9216;
    t.num_local_experts = 32;
    t.num_experts_per_tok = 2;
    t.vocab_size = 2048;
    t.rms_norm_eps = 1e-5F;
    for (int l = 0; l < layers; ++l)
        t.attn_type_list.push_back(l % 8 == 7 ? AttentionKind::kSoftmax
                                              : AttentionKind::kLightning);
    constexpr float kAlpha = 3.5565588200778455F;
    t.layernorm_linear_attention_alpha = t.layernorm_full_attention_alpha = t.layernorm_mlp_alpha =
        kAlpha;
    t.layernorm_linear_attention_beta = t.layernorm_full_attention_beta = t.layernorm_mlp_beta =
        1.0F;
    return c;
}

/// Shapes of the tensors; values only for what the store reads on the host: gains, routers and the
/// embedding.
class Shapes final : public WeightSource {
  public:
    explicit Shapes(const TextConfig& t) : config_(t) {
        Random random;
        gains_.resize(static_cast<std::size_t>(t.num_attention_heads * t.head_dim));
        for (float& v : gains_) v = 1.0F + 0.1F * random.normal();
        router_.resize(static_cast<std::size_t>(t.num_local_experts) *
                       static_cast<std::size_t>(t.hidden_size));
        for (float& v : router_) v = 0.0125F * random.normal();
        embedding_.resize(static_cast<std::size_t>(t.vocab_size) *
                          static_cast<std::size_t>(t.hidden_size));
        for (std::uint16_t& v : embedding_) v = bf16_bits(random.normal());
    }

    HostTensor tensor(std::string_view name) const override {
        const auto ends = [&](std::string_view tail) { return name.ends_with(tail); };
        const std::int64_t hidden = config_.hidden_size;
        const std::int64_t width = std::int64_t{config_.num_attention_heads} * config_.head_dim;
        const std::int64_t kv = std::int64_t{config_.num_key_value_heads} * config_.head_dim;
        const std::int64_t inner = config_.intermediate_size;
        if (ends("self_attn.norm.weight")) return floats(gains_, width);
        if (ends("norm.weight") || ends("layernorm.weight")) return floats(gains_, hidden);
        if (ends(".gate.weight")) {
            HostTensor t = floats(router_, config_.num_local_experts);
            t.rank = 2;
            t.shape[1] = hidden;
            return t;
        }
        if (ends("qkv_proj.weight")) return matrix(3 * width, hidden);
        if (ends("output_gate.weight") || ends("q_proj.weight")) return matrix(width, hidden);
        if (ends("k_proj.weight") || ends("v_proj.weight")) return matrix(kv, hidden);
        if (ends("out_proj.weight") || ends("o_proj.weight")) return matrix(hidden, width);
        if (ends("w1.weight") || ends("w3.weight")) return matrix(inner, hidden);
        if (ends("w2.weight")) return matrix(hidden, inner);
        return matrix(config_.vocab_size, hidden);  // embedding and head
    }

  private:
    static HostTensor floats(const std::vector<float>& values, std::int64_t count) {
        return {.data = values.data(), .dtype = DType::kF32, .rank = 1, .shape = {count}};
    }
    HostTensor matrix(std::int64_t rows, std::int64_t cols) const {
        return {.data = embedding_.data(), .dtype = DType::kBF16, .rank = 2, .shape = {rows, cols}};
    }

    TextConfig config_;
    std::vector<float> gains_, router_;
    std::vector<std::uint16_t> embedding_;
};

/// A backend whose weights are random values made in its own memory. Everything else goes through.
class RandomWeights final : public kernels::Backend {
  public:
    RandomWeights(kernels::Backend& backend) : b_(backend) {
        constexpr float kScale = 0.0125F;  // about 1 / sqrt(inputs)
        std::vector<std::uint16_t> values(std::size_t{1} << 24);
        Random random;
        for (std::uint16_t& v : values) v = bf16_bits(kScale * random.normal());
        bytes_ = values.size() * sizeof(std::uint16_t);
        block_ = b_.allocate(bytes_);
        b_.copy_in(block_.data(), values.data(), bytes_);
    }
    kernels::Weight place(const WeightView& host) override {
        return std::move(place_together({&host, 1}).front());
    }
    std::vector<kernels::Weight> place_together(std::span<const WeightView> host) override {
        std::size_t bytes = 0;
        for (const WeightView& view : host) bytes += view.size_bytes();
        Buffer owner = b_.allocate(bytes);
        fill(owner);
        std::vector<kernels::Weight> placed;
        const auto* at = owner.as<std::byte>();
        for (WeightView view : host) {
            view.data = at;
            at += view.size_bytes();
            placed.push_back({view, {}});
        }
        placed.front().owner = std::move(owner);
        return placed;
    }

    kernels::DeviceInfo device() const override { return b_.device(); }
    DType activation_dtype() const override { return b_.activation_dtype(); }
    DType kv_dtype() const override { return b_.kv_dtype(); }
    std::int64_t preferred_chunk_tokens() const override { return b_.preferred_chunk_tokens(); }
    void set_cancel_flag(const CancelFlag* flag) override { b_.set_cancel_flag(flag); }
    Buffer allocate(std::size_t n) override { return b_.allocate(n); }
    void copy_in(void* to, const void* from, std::size_t n) override { b_.copy_in(to, from, n); }
    void copy_out(void* to, const void* from, std::size_t n) override { b_.copy_out(to, from, n); }
    void copy(void* to, const void* from, std::size_t n) override { b_.copy(to, from, n); }
    void zero(void* to, std::size_t n) override { b_.zero(to, n); }
    void synchronize() override { b_.synchronize(); }
    Buffer place_floats(const WeightView& host) override { return b_.place_floats(host); }
    void embed(const WeightView& t, std::span<const std::int32_t> ids, Matrix out) override {
        b_.embed(t, ids, out);
    }
    void gather_rows(ConstMatrix t, const float* f, std::span<const std::int32_t> i,
                     Matrix out) override {
        b_.gather_rows(t, f, i, out);
    }
    void step(const kernels::StepCall& c, const std::function<void()>& f) override {
        b_.step(c, f);
    }
    void norm_linear(const kernels::NormLinearParams& p) override { b_.norm_linear(p); }
    void linear_residual(const kernels::LinearResidualParams& p) override { b_.linear_residual(p); }
    void lightning_attention(const kernels::LightningParams& p) override {
        b_.lightning_attention(p);
    }
    void rope_append(const kernels::RopeAppendParams& p) override { b_.rope_append(p); }
    void softmax_attention(const kernels::SoftmaxAttentionParams& p) override {
        b_.softmax_attention(p);
    }
    void route(const kernels::RouteParams& p) override { b_.route(p); }
    void experts(const kernels::ExpertsParams& p) override { b_.experts(p); }
    std::int32_t sample(const kernels::SampleParams& p) override { return b_.sample(p); }
    void patch_embed(const kernels::PatchEmbedParams& p) override { b_.patch_embed(p); }
    void vit_attention(const kernels::VitAttentionParams& p) override { b_.vit_attention(p); }

  private:
    /// The block again and again, each time from another start.
    void fill(const Buffer& to) {
        for (std::size_t done = 0; done < to.size_bytes();) {
            const std::size_t from = start_ % bytes_;
            const std::size_t n = std::min(bytes_ - from, to.size_bytes() - done);
            b_.copy(to.as<std::byte>() + done, block_.as<std::byte>() + from, n);
            done += n;
            start_ += n + 4096 * 7;
        }
    }

    kernels::Backend& b_;
    Buffer block_;
    std::size_t bytes_ = 0;
    std::size_t start_ = 0;
};

struct Options {
    int layers = 8;
    std::vector<std::int64_t> lengths{512, 4096, 16384, 65536};
    std::vector<std::int64_t> contexts{1024, 65536};
    std::int64_t steps = 64;
    std::string json;
};

[[noreturn]] void usage(const std::string& wrong) {
    std::fprintf(stderr,
                 "error: %s\nusage: llm-bench [--layers N] [--lengths N,N,...] "
                 "[--contexts N,N,...] [--steps N] [--json FILE]\n",
                 wrong.c_str());
    std::exit(2);
}

std::int64_t number(const std::string& text) {
    char* end = nullptr;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || value < 1) usage("not a number above 0: " + text);
    return value;
}
std::vector<std::int64_t> numbers(const std::string& text) {
    std::vector<std::int64_t> values;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t comma = std::min(text.find(',', at), text.size());
        values.push_back(number(text.substr(at, comma - at)));
        at = comma + 1;
    }
    return values;
}
Options parse(int argc, char** argv) {
    Options o;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (++i == argc) usage("a value belongs after " + name);
        const std::string value = argv[i];
        if (name == "--layers")
            o.layers = static_cast<int>(number(value));
        else if (name == "--lengths")
            o.lengths = numbers(value);
        else if (name == "--contexts")
            o.contexts = numbers(value);
        else if (name == "--steps")
            o.steps = number(value);
        else if (name == "--json")
            o.json = value;
        else
            usage("unknown option " + name);
    }
    if (o.layers < 2) usage("two layers at least");
    return o;
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

int run(const Options& options) {
    const std::unique_ptr<kernels::Backend> device = kernels::make_cuda_backend();
    const ModelConfig config = real_config(options.layers);
    const Shapes shapes(config.text);
    RandomWeights backend(*device);
    const WeightStore weights(backend, config, shapes);
    Decoder decoder(backend, config, weights, {.chunk_tokens = backend.preferred_chunk_tokens()});
    const double scale = static_cast<double>(kRealLayers) / options.layers;
    std::printf("%s; %d layers, %.1f GB of weights; per second for %d layers\n",
                device->device().name.c_str(), options.layers,
                static_cast<double>(weights.allocated_bytes()) * 1e-9, kRealLayers);

    std::string json;
    const auto row = [&](const char* kind, std::int64_t tokens, double seconds, double rate) {
        std::printf("%-8s %8lld tokens %12.3f ms %12.1f tokens/s\n", kind,
                    static_cast<long long>(tokens), seconds * 1e3, rate);
        char text[200];
        std::snprintf(text, sizeof(text),
                      "%s{\"kind\": \"%s\", \"tokens\": %lld, \"seconds\": %.9g, "
                      "\"tokens_per_second\": %.9g}",
                      json.empty() ? "" : ", ", kind, static_cast<long long>(tokens), seconds,
                      rate);
        json += text;
    };
    const auto ids_of = [&](std::int64_t count) {
        std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
        for (std::size_t i = 0; i < ids.size(); ++i)
            ids[i] = static_cast<std::int32_t>(i * 7919 %
                                               static_cast<std::size_t>(config.text.vocab_size));
        return ids;
    };
    for (const std::int64_t length : options.lengths) {
        const std::vector<std::int32_t> ids = ids_of(length);
        std::vector<double> seconds;
        for (std::int64_t round = 0; round <= kPrefillRounds; ++round) {
            SequenceState state = decoder.new_state();
            PrefillInput input;
            input.ids = ids;
            backend.synchronize();
            const Clock::time_point start = Clock::now();
            decoder.prefill(state, input);
            if (round > 0) seconds.push_back(seconds_since(start));  // the first warms up
        }
        const double s = median(seconds);
        row("prefill", length, s, static_cast<double>(length) / (s * scale));
    }
    for (const std::int64_t context : options.contexts) {
        SequenceState state = decoder.new_state();
        const std::vector<std::int32_t> ids = ids_of(context);
        PrefillInput input;
        input.ids = ids;
        decoder.prefill(state, input);
        state.prepare(options.steps + 4);
        std::int32_t id = 1;
        const auto step = [&] {
            const float* logits = decoder.step(state, id);
            id = backend.sample({.logits = logits, .vocab = config.text.vocab_size});
        };
        for (int i = 0; i < 4; ++i) step();
        const Clock::time_point start = Clock::now();
        for (std::int64_t i = 0; i < options.steps; ++i) step();
        const double s = seconds_since(start) / static_cast<double>(options.steps);
        row("decode", context, s, 1.0 / (s * scale));
    }
    if (!options.json.empty()) std::ofstream(options.json) << "{\"rows\": [" << json << "]}\n";
    return 0;
}

}  // namespace
}  // namespace longview::llm

int main(int argc, char** argv) {
    try {
        return longview::llm::run(longview::llm::parse(argc, argv));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}

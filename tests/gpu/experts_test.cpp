// The router and the mixture of experts on a GPU against the CPU form.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "kernels/cuda/ops.h"
#include "tests/gpu/matrices.h"

namespace longview::gpu_test {
namespace {

namespace cuda = kernels::cuda;
using kernels::ExpertWeights;

constexpr float kEps = 1e-5F;

std::string number(std::int64_t n) {
    return std::to_string(n);
}

// ---- router

enum class Gate { kRandom, kAllEqual, kPairsEqual };

struct RouteSpec {
    std::int64_t n = 0, hidden = 0, experts = 0;
    int top_k = 0;
    Gate gate = Gate::kRandom;
    Placing placing = {};
    std::size_t gate_shift = 0;  // multiples of 4
};

std::vector<float> make_gate(Random& random, const RouteSpec& spec) {
    const float scale = 1.0F / std::sqrt(static_cast<float>(spec.hidden));
    std::vector<float> gate = random.normals(spec.experts * spec.hidden, scale);
    for (std::int64_t e = 0; e < spec.experts; ++e) {
        const std::int64_t like = spec.gate == Gate::kAllEqual     ? 0
                                  : spec.gate == Gate::kPairsEqual ? e / 2 * 2
                                                                   : e;
        std::copy_n(gate.begin() + like * spec.hidden, spec.hidden, gate.begin() + e * spec.hidden);
    }
    return gate;
}

/// The experts of a row by logits in double, best first, the lower index first among equals.
struct Order {
    std::vector<std::int32_t> ids;
    std::vector<double> logits;  // in that order
};
Order order_of(const Input& x, const float* gain, const std::vector<float>& gate,
               const RouteSpec& spec, std::int64_t row) {
    const float* const values = x.values().data() + row * x.stride();
    double squares = 0.0;
    for (std::int64_t i = 0; i < spec.hidden; ++i)
        squares += static_cast<double>(values[i]) * values[i];
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(spec.hidden) + kEps);
    std::vector<double> logits;
    for (std::int64_t e = 0; e < spec.experts; ++e) {
        double sum = 0.0;
        for (std::int64_t i = 0; i < spec.hidden; ++i)
            sum += static_cast<double>(values[i]) * gain[i] *
                   gate[static_cast<std::size_t>(e * spec.hidden + i)];
        logits.push_back(sum * scale);
    }
    Order order;
    order.ids.resize(logits.size());
    std::iota(order.ids.begin(), order.ids.end(), 0);
    std::stable_sort(order.ids.begin(), order.ids.end(), [&](std::int32_t a, std::int32_t b) {
        return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    for (const std::int32_t e : order.ids)
        order.logits.push_back(logits[static_cast<std::size_t>(e)]);
    return order;
}

/// Whether rank `i` follows from the logits: neighbours are equal exactly or well apart.
bool is_clear(const Order& order, std::size_t i) {
    const auto apart = [&](std::size_t a, std::size_t b) {
        const double gap = order.logits[a] - order.logits[b];
        return gap == 0.0 || gap > 1e-5;
    };
    return (i == 0 || apart(i - 1, i)) && (i + 1 >= order.ids.size() || apart(i, i + 1));
}

void test_route(Device& d, const RouteSpec& spec) {
    Random random(static_cast<std::uint64_t>(spec.n * 1009 + spec.experts * 31 + spec.top_k));
    const Input x(random, spec.n, spec.hidden, spec.placing);
    const Floats gain(random, spec.hidden, 1.0F, 0.2F);
    const std::vector<float> gate = make_gate(random, spec);
    const DeviceMemory device_gate = upload_f32(gate, spec.gate_shift);
    Output normed(spec.n, spec.hidden, DType::kBF16, spec.placing);
    const auto chosen = static_cast<std::size_t>(std::max<std::int64_t>(spec.n, 1) * spec.top_k);
    std::vector<std::int32_t> host_ids(chosen);
    std::vector<float> host_weights(chosen);
    const DeviceMemory ids(chosen * sizeof(std::int32_t));
    const DeviceMemory weights(chosen * sizeof(float));
    d.cpu().route({.x = x.host(),
                   .gain = gain.host(),
                   .eps = kEps,
                   .normed = normed.host(),
                   .gate = {gate.data(), DType::kF32, spec.experts, spec.hidden},
                   .top_k = spec.top_k,
                   .ids = host_ids.data(),
                   .weights = host_weights.data()});
    cuda::route(d.context(),
                {.x = x.device(),
                 .gain = gain.device(),
                 .eps = kEps,
                 .normed = normed.device(),
                 .gate = {device_gate.as<void>(), DType::kF32, spec.experts, spec.hidden},
                 .top_k = spec.top_k,
                 .ids = ids.as<std::int32_t>(),
                 .weights = weights.as<float>()});
    d.finish();
    ids.check_guards();
    weights.check_guards();
    normed.compare("normed", bf16_bound(spec.n * spec.hidden));
    if (spec.n == 0) return;
    // Weights do not depend on which of two nearly equal experts came first.
    expect_close("weights", weights.read_f32(), host_weights, 2e-5);
    const std::vector<std::int32_t> got = ids.read_i32();
    std::int64_t unclear = 0;
    for (std::int64_t row = 0; row < spec.n; ++row) {
        const Order order = order_of(x, gain.host(), gate, spec, row);
        for (std::size_t i = 0; i < static_cast<std::size_t>(spec.top_k); ++i) {
            const std::int32_t id = got[static_cast<std::size_t>(row * spec.top_k) + i];
            expect(id >= 0 && id < spec.experts, "ids are of experts");
            if (!is_clear(order, i)) {
                ++unclear;
                continue;
            }
            expect(id == order.ids[i], "row " + number(row) + " rank " +
                                           number(static_cast<std::int64_t>(i)) + ": expert " +
                                           number(id) + " instead of " + number(order.ids[i]));
        }
    }
    expect(unclear * 20 <= static_cast<std::int64_t>(chosen) + 20, "nearly all ranks are clear");
}

void test_route_nan(Device& d, std::int64_t n) {
    constexpr std::int64_t kHidden = 512;
    constexpr std::int64_t kExperts = 32;
    Random random(3);
    std::vector<float> values = random.normals_bf16(n * kHidden);
    values[100] = std::nanf("");
    const Input x(values, n, kHidden);
    const Floats gain(random, kHidden, 1.0F, 0.2F);
    const DeviceMemory gate = upload_f32(random.normals(kExperts * kHidden, 0.05F));
    const Output normed(n, kHidden);
    const DeviceMemory ids(static_cast<std::size_t>(2 * n) * sizeof(std::int32_t));
    const DeviceMemory weights(static_cast<std::size_t>(2 * n) * sizeof(float));
    cuda::route(d.context(), {.x = x.device(),
                              .gain = gain.device(),
                              .eps = kEps,
                              .normed = normed.device(),
                              .gate = {gate.as<void>(), DType::kF32, kExperts, kHidden},
                              .top_k = 2,
                              .ids = ids.as<std::int32_t>(),
                              .weights = weights.as<float>()});
    d.finish();
    const std::vector<float> w = weights.read_f32();
    const std::vector<std::int32_t> got = ids.read_i32();
    expect(std::isnan(w[0]) && std::isnan(w[1]), "a NaN makes the weights of its row NaN");
    for (std::size_t i = 0; i < got.size(); ++i) {
        expect(got[i] >= 0 && got[i] < kExperts, "ids are valid all the same");
        expect(i < 2 || !std::isnan(w[i]), "other rows keep their weights");
    }
}

// ---- experts

enum class Routing { kRandom, kOneExpert, kFirstHalf };

struct ExpertsSpec {
    std::int64_t n = 0, hidden = 256, inner = 384;
    int experts = 8;
    int top_k = 2;
    Routing routing = Routing::kRandom;
    Placing placing = {};
    std::size_t weight_shift = 0;
    float alpha = 3.55F, beta = 1.0F;
};

/// Distinct experts for each row and weights that sum to 1.
struct Routed {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
};
Routed make_routing(Random& random, const ExpertsSpec& spec) {
    Routed routed;
    for (std::int64_t row = 0; row < spec.n; ++row) {
        float sum = 0.0F;
        const std::size_t begin = routed.ids.size();
        const std::int32_t among = spec.routing == Routing::kFirstHalf
                                       ? std::max(spec.top_k, spec.experts / 2)
                                       : spec.experts;
        for (std::int32_t i = 0; i < spec.top_k; ++i) {
            std::int32_t id = i;
            const auto taken = [&] {
                return std::find(routed.ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                 routed.ids.end(), id) != routed.ids.end();
            };
            if (spec.routing == Routing::kOneExpert) {
                id = spec.experts - 1 - i;
            } else {
                do {
                    id = static_cast<std::int32_t>(random.next() % static_cast<unsigned>(among));
                } while (taken());
            }
            routed.ids.push_back(id);
            routed.weights.push_back(random.uniform(0.1F, 1.0F));
            sum += routed.weights.back();
        }
        for (std::size_t i = begin; i < routed.weights.size(); ++i) routed.weights[i] /= sum;
    }
    return routed;
}

void test_experts(Device& d, const ExpertsSpec& spec) {
    Random random(static_cast<std::uint64_t>(spec.n * 100003 + spec.experts * 17 + spec.top_k));
    const Input x(random, spec.n, spec.hidden, spec.placing);
    Routed routed = make_routing(random, spec);
    std::vector<BothWeight> weights;
    for (int e = 0; e < spec.experts; ++e) {
        weights.emplace_back(random, spec.inner, spec.hidden, spec.weight_shift);
        weights.emplace_back(random, spec.inner, spec.hidden, spec.weight_shift);
        weights.emplace_back(random, spec.hidden, spec.inner, spec.weight_shift);
    }
    std::vector<ExpertWeights> host;
    std::vector<ExpertWeights> device;
    for (std::size_t e = 0; e < weights.size(); e += 3) {
        host.push_back({weights[e].host(), weights[e + 1].host(), weights[e + 2].host()});
        device.push_back({weights[e].device(), weights[e + 1].device(), weights[e + 2].device()});
    }
    if (spec.n == 0) {
        routed.ids.push_back(0);
        routed.weights.push_back(1.0F);
    }
    const DeviceMemory ids = upload_i32(routed.ids);
    const DeviceMemory shares = upload_f32(routed.weights);
    Output out(spec.n, spec.hidden, DType::kBF16, spec.placing);
    d.cpu().experts({.x = x.host(),
                     .top_k = spec.top_k,
                     .ids = routed.ids.data(),
                     .weights = routed.weights.data(),
                     .experts = host,
                     .alpha = spec.alpha,
                     .beta = spec.beta,
                     .out = out.host()});
    cuda::experts(d.context(), {.x = x.device(),
                                .top_k = spec.top_k,
                                .ids = ids.as<std::int32_t>(),
                                .weights = shares.as<float>(),
                                .experts = device,
                                .alpha = spec.alpha,
                                .beta = spec.beta,
                                .out = out.device()});
    d.finish();
    out.compare("out", bf16_bound(spec.n * spec.hidden));
}

// ---- a recorded step

/// The operators of a decode step, with ids from the router, recorded into a graph: the same bits
/// as launched one by one, and nothing in them that a recording refuses.
void test_recorded(Device& d) {
    constexpr std::int64_t kHidden = 512;
    constexpr std::int64_t kInner = 768;
    constexpr std::int64_t kExperts = 8;
    constexpr int kTopK = 2;
    Random random(11);
    const Input x(random, 1, kHidden);
    const Floats gain(random, kHidden, 1.0F, 0.2F);
    const BothWeight projection(random, kHidden, kHidden);
    const DeviceMemory gate = upload_f32(random.normals(kExperts * kHidden, 0.05F));
    std::vector<BothWeight> weights;
    for (std::int64_t e = 0; e < kExperts; ++e) {
        weights.emplace_back(random, kInner, kHidden);
        weights.emplace_back(random, kInner, kHidden);
        weights.emplace_back(random, kHidden, kInner);
    }
    std::vector<ExpertWeights> experts;
    for (std::size_t e = 0; e < weights.size(); e += 3)
        experts.push_back({weights[e].device(), weights[e + 1].device(), weights[e + 2].device()});
    const Output u(1, kHidden), a(1, kHidden), b(1, kHidden), v(1, kHidden), y(1, kHidden);
    const DeviceMemory ids(kTopK * sizeof(std::int32_t));
    const DeviceMemory shares(kTopK * sizeof(float));

    const cuda::Context c = d.step_context(7, 3);
    const auto step = [&] {
        const kernels::LinearOutput o{.weight = projection.device(), .out = a.device()};
        cuda::norm_linear(c, {.x = x.device(),
                              .norm = kernels::Norm::kRms,
                              .gain = gain.device(),
                              .eps = kEps,
                              .normed = u.device(),
                              .outputs = {&o, 1}});
        cuda::linear_residual(c, {.in = a.device(),
                                  .norm_gain = gain.device(),
                                  .norm_eps = kEps,
                                  .gate = u.device(),
                                  .weight = projection.device(),
                                  .skip = u.device(),
                                  .alpha = 3.55F,
                                  .out = b.device()});
        cuda::route(c, {.x = b.device(),
                        .gain = gain.device(),
                        .eps = kEps,
                        .normed = v.device(),
                        .gate = {gate.as<void>(), DType::kF32, kExperts, kHidden},
                        .top_k = kTopK,
                        .ids = ids.as<std::int32_t>(),
                        .weights = shares.as<float>()});
        cuda::experts(c, {.x = v.device(),
                          .top_k = kTopK,
                          .ids = ids.as<std::int32_t>(),
                          .weights = shares.as<float>(),
                          .experts = experts,
                          .alpha = 3.55F,
                          .out = y.device()});
    };
    step();
    d.finish();
    const std::vector<float> launched = y.read();
    expect(std::none_of(launched.begin(), launched.end(), [](float f) { return std::isnan(f); }),
           "the step gives numbers");

    const auto ok = [](cudaError_t status, const char* what) {
        expect(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
    };
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t run = nullptr;
    ok(cudaMemsetAsync(y.device().data, 0xFF, kHidden * 2, c.stream), "memset");
    ok(cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal), "begin");
    step();
    ok(cudaStreamEndCapture(c.stream, &graph), "end");
    ok(cudaGraphInstantiate(&run, graph, 0), "instantiate");
    for (int i = 0; i < 3; ++i) ok(cudaGraphLaunch(run, c.stream), "launch");
    d.finish();
    cudaGraphExecDestroy(run);
    cudaGraphDestroy(graph);
    expect(y.read() == launched, "recorded and launched steps give the same bits");
}

void add_routes(std::vector<Case>& cases) {
    const auto add = [&](const std::string& what, const RouteSpec& spec) {
        cases.push_back({"route n=" + number(spec.n) + " " + number(spec.experts) + "x" +
                             number(spec.hidden) + " top " + number(spec.top_k) + what,
                         [spec](Device& d) { test_route(d, spec); }});
    };
    for (const std::int64_t n : {1, 2, 5, 33, 128, 129, 300}) {
        for (const std::int64_t experts : {1, 5, 32, 33, 100, 256}) {
            for (const int top_k : {1, 2, 4}) {
                if (top_k > experts) continue;
                add("", {.n = n, .hidden = 512, .experts = experts, .top_k = top_k});
            }
        }
        add(" equal", {.n = n, .hidden = 256, .experts = 100, .top_k = 4, .gate = Gate::kAllEqual});
        add(" equal pairs",
            {.n = n, .hidden = 256, .experts = 32, .top_k = 4, .gate = Gate::kPairsEqual});
        add(" real", {.n = n, .hidden = 6144, .experts = 32, .top_k = 2});
        add(" odd", {.n = n, .hidden = 63, .experts = 8, .top_k = 2});
        add(" narrow", {.n = n, .hidden = 8, .experts = 8, .top_k = 8});
        add(" ragged", {.n = n, .hidden = 1000, .experts = 32, .top_k = 2});
        add(" shifted",
            {.n = n, .hidden = 512, .experts = 32, .top_k = 2, .placing = {.shift_bytes = 2}});
        add(" gate shifted", {.n = n, .hidden = 512, .experts = 32, .top_k = 2, .gate_shift = 4});
        add(" strided",
            {.n = n, .hidden = 512, .experts = 32, .top_k = 2, .placing = {.extra_stride = 8}});
        add(" odd stride",
            {.n = n, .hidden = 512, .experts = 32, .top_k = 2, .placing = {.extra_stride = 1}});
        cases.push_back(
            {"route n=" + number(n) + " NaN", [n](Device& d) { test_route_nan(d, n); }});
    }
    add(" all", {.n = 3, .hidden = 512, .experts = 64, .top_k = 32});
    add(" none", {.n = 0, .hidden = 512, .experts = 32, .top_k = 2});
}

void add_experts(std::vector<Case>& cases) {
    const auto add = [&](const std::string& what, const ExpertsSpec& spec) {
        cases.push_back({"experts n=" + number(spec.n) + " of " + number(spec.experts) + " top " +
                             number(spec.top_k) + " " + number(spec.inner) + "x" +
                             number(spec.hidden) + what,
                         [spec](Device& d) { test_experts(d, spec); }});
    };
    for (const std::int64_t n : {1, 2, 3, 4, 5, 33, 300}) {
        for (const int experts : {4, 8, 32}) {
            for (const int top_k : {1, 2, 3}) add("", {.n = n, .experts = experts, .top_k = top_k});
        }
        add(" to one", {.n = n, .top_k = 1, .routing = Routing::kOneExpert});
        add(" to the same two", {.n = n, .routing = Routing::kOneExpert});
        add(" half of them idle", {.n = n, .routing = Routing::kFirstHalf});
        add(" other factors", {.n = n, .alpha = 1.0F, .beta = 0.25F});
        add(" many", {.n = n, .hidden = 64, .inner = 72, .experts = 40, .top_k = 4});
        add(" odd", {.n = n, .hidden = 63, .inner = 65});
        add(" odd inside", {.n = n, .hidden = 64, .inner = 65});
        add(" ragged", {.n = n, .hidden = 1032, .inner = 520});
        add(" shifted", {.n = n, .placing = {.shift_bytes = 2}});
        add(" shifted weights", {.n = n, .weight_shift = 2});
        add(" strided", {.n = n, .placing = {.extra_stride = 8}});
        add(" odd stride", {.n = n, .placing = {.extra_stride = 3}});
    }
    for (const std::int64_t n : {1, 40})
        add(" real", {.n = n, .hidden = 6144, .inner = 9216, .experts = 2, .top_k = 2});
    add(" two passes", {.n = 9000, .hidden = 64, .inner = 64, .experts = 8, .top_k = 4});
    add(" none", {.n = 0});
    cases.push_back({"recorded step", test_recorded});
}

}  // namespace
}  // namespace longview::gpu_test

int main(int argc, char** argv) {
    using namespace longview::gpu_test;
    std::vector<Case> cases;
    add_routes(cases);
    add_experts(cases);
    return run_cases(argc, argv, cases);
}

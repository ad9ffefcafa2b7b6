// Norms and linear layers on a GPU against the CPU form.
#include <algorithm>
#include <optional>
#include <utility>

#include "kernels/cuda/ops.h"
#include "tests/gpu/matrices.h"

namespace longview::gpu_test {
namespace {

namespace cuda = kernels::cuda;
using kernels::Activation;
using kernels::LinearOutput;
using kernels::Norm;

constexpr float kEps = 1e-5F;
// fp32 sums of up to 16384 products in another order.
constexpr double kFloatBound = 1e-5;

std::string number(std::int64_t n) {
    return std::to_string(n);
}

void test_norm(Device& d, Norm norm, std::int64_t rows, std::int64_t cols, DType dtype,
               Placing placing) {
    Random random(static_cast<std::uint64_t>(rows * 10000 + cols));
    const Input x(random, rows, cols, placing);
    const Floats gain(random, cols, 1.0F, 0.2F);
    const Floats bias(random, cols, 0.5F, 0.5F);
    Output y(rows, cols, dtype, placing);
    d.cpu().norm_linear({.x = x.host(),
                         .norm = norm,
                         .gain = gain.host(),
                         .norm_bias = bias.host(),
                         .eps = kEps,
                         .normed = y.host(),
                         .outputs = {}});
    if (norm == Norm::kRms) {
        cuda::rms_norm(d.context(), x.device(), gain.device(), kEps, y.device());
    } else {
        cuda::layer_norm(d.context(), x.device(), gain.device(), bias.device(), kEps, y.device());
    }
    d.finish();
    y.compare("norm", dtype == DType::kF32 ? kFloatBound : 4e-3);
}

struct OutputSpec {
    std::int64_t size = 0;
    Activation activation = Activation::kNone;
    bool bias = false;
    DType dtype = DType::kBF16;
};

struct LinearSpec {
    std::int64_t n = 0, in = 0;
    Norm norm = Norm::kRms;
    bool normed = false;
    std::vector<OutputSpec> outputs;
    Placing placing = {};
    std::size_t weight_shift = 0;
};

void test_linear(Device& d, const LinearSpec& spec) {
    Random random(static_cast<std::uint64_t>(spec.n * 100003 + spec.in));
    const Input x(random, spec.n, spec.in, spec.placing);
    const Floats gain(random, spec.in, 1.0F, 0.2F);
    const Floats norm_bias(random, spec.in, 0.0F, 0.5F);
    std::optional<Output> normed;
    if (spec.normed) normed.emplace(spec.n, spec.in, DType::kBF16, spec.placing);
    std::vector<BothWeight> weights;
    std::vector<Floats> biases;
    std::vector<Output> outs;
    for (const OutputSpec& o : spec.outputs) {
        weights.emplace_back(random, o.size, spec.in, spec.weight_shift);
        biases.emplace_back(random, o.size, 0.0F, 0.5F);
        outs.emplace_back(spec.n, o.size, o.dtype, spec.placing);
    }
    std::vector<LinearOutput> host;
    std::vector<LinearOutput> device;
    for (std::size_t i = 0; i < outs.size(); ++i) {
        const OutputSpec& o = spec.outputs[i];
        host.push_back({.weight = weights[i].host(),
                        .bias = o.bias ? biases[i].host() : nullptr,
                        .activation = o.activation,
                        .out = outs[i].host()});
        device.push_back({.weight = weights[i].device(),
                          .bias = o.bias ? biases[i].device() : nullptr,
                          .activation = o.activation,
                          .out = outs[i].device()});
    }
    const bool has_norm = spec.norm != Norm::kNone;
    const bool layer = spec.norm == Norm::kLayer;
    d.cpu().norm_linear({.x = x.host(),
                         .norm = spec.norm,
                         .gain = has_norm ? gain.host() : nullptr,
                         .norm_bias = layer ? norm_bias.host() : nullptr,
                         .eps = kEps,
                         .normed = normed ? normed->host() : Matrix{},
                         .outputs = host});
    cuda::norm_linear(d.context(), {.x = x.device(),
                                    .norm = spec.norm,
                                    .gain = has_norm ? gain.device() : nullptr,
                                    .norm_bias = layer ? norm_bias.device() : nullptr,
                                    .eps = kEps,
                                    .normed = normed ? normed->device() : Matrix{},
                                    .outputs = device});
    d.finish();
    if (normed) normed->compare("normed", bf16_bound(spec.n * spec.in));
    for (std::size_t i = 0; i < outs.size(); ++i) {
        const OutputSpec& o = spec.outputs[i];
        const bool exact = o.dtype == DType::kF32 && spec.n <= 4;
        // A single sum of few products may be what cancellation left of them.
        const double float_bound = spec.n * o.size < 256 ? 1e-4 : kFloatBound;
        outs[i].compare("output " + number(static_cast<std::int64_t>(i)),
                        exact ? float_bound : bf16_bound(spec.n * o.size));
    }
}

struct ResidualSpec {
    std::int64_t n = 0, in = 0, out = 0;
    bool norm = true, gate = true, bias = false, in_place = false;
    float alpha = 3.55F, beta = 1.0F;
    Placing placing = {};
    std::size_t weight_shift = 0;
};

void test_residual(Device& d, const ResidualSpec& spec) {
    Random random(static_cast<std::uint64_t>(spec.n * 100003 + spec.in * 7 + spec.out));
    const Input in(random, spec.n, spec.in, spec.placing);
    const Input gate(random, spec.n, spec.in, spec.placing, 0.5F);
    const Input skip(random, spec.n, spec.out, spec.placing);
    const Floats gain(random, spec.in, 1.0F, 0.2F);
    const Floats bias(random, spec.out, 0.0F, 0.5F);
    const BothWeight weight(random, spec.out, spec.in, spec.weight_shift);
    Output out(spec.n, spec.out, DType::kBF16, spec.placing);
    if (spec.in_place) out.begin_with(skip);
    d.cpu().linear_residual({.in = in.host(),
                             .norm_gain = spec.norm ? gain.host() : nullptr,
                             .norm_eps = kEps,
                             .gate = spec.gate ? gate.host() : ConstMatrix{},
                             .weight = weight.host(),
                             .bias = spec.bias ? bias.host() : nullptr,
                             .skip = spec.in_place ? ConstMatrix(out.host()) : skip.host(),
                             .alpha = spec.alpha,
                             .beta = spec.beta,
                             .out = out.host()});
    cuda::linear_residual(d.context(),
                          {.in = in.device(),
                           .norm_gain = spec.norm ? gain.device() : nullptr,
                           .norm_eps = kEps,
                           .gate = spec.gate ? gate.device() : ConstMatrix{},
                           .weight = weight.device(),
                           .bias = spec.bias ? bias.device() : nullptr,
                           .skip = spec.in_place ? ConstMatrix(out.device()) : skip.device(),
                           .alpha = spec.alpha,
                           .beta = spec.beta,
                           .out = out.device()});
    d.finish();
    out.compare("out", bf16_bound(spec.n * spec.out), !spec.in_place);
}

/// The fused kernels give a row the same bits alone and among others.
void test_alone_and_together(Device& d) {
    constexpr std::int64_t kRows = 3;
    constexpr std::int64_t kIn = 6144;
    constexpr std::int64_t kOut = 1000;
    Random random(5);
    const Input x(random, kRows, kIn);
    const Floats gain(random, kIn, 1.0F, 0.2F);
    const BothWeight weight(random, kOut, kIn);
    const Output alone(1, kOut, DType::kF32);
    const Output together(kRows, kOut, DType::kF32);
    const auto run = [&](const ConstMatrix& rows, const Output& out) {
        const LinearOutput o{.weight = weight.device(), .out = out.device()};
        cuda::norm_linear(d.context(), {.x = rows,
                                        .norm = Norm::kRms,
                                        .gain = gain.device(),
                                        .eps = kEps,
                                        .normed = {},
                                        .outputs = {&o, 1}});
    };
    run(x.device().slice(1, 1), alone);
    run(x.device(), together);
    d.finish();
    const std::vector<float> all = together.read();
    const std::vector<float> row(all.begin() + kOut, all.begin() + 2 * kOut);
    expect(row == alone.read(), "a row has the same bits alone and among others");
}

void add_norms(std::vector<Case>& cases) {
    for (const Norm norm : {Norm::kRms, Norm::kLayer}) {
        const std::string name = norm == Norm::kRms ? "rms_norm " : "layer_norm ";
        const auto add = [&](std::int64_t rows, std::int64_t cols, DType dtype, Placing placing) {
            cases.push_back({name + number(rows) + "x" + number(cols) + " " + dtype_name(dtype) +
                                 (placing.shift_bytes != 0 ? " shifted" : "") +
                                 (placing.extra_stride != 0 ? " strided" : ""),
                             [=](Device& d) { test_norm(d, norm, rows, cols, dtype, placing); }});
        };
        for (const std::int64_t cols :
             {1, 7, 64, 255, 1024, 1032, 6144, 8192, 9216, 16384, 16392}) {
            add(5, cols, DType::kBF16, {});
            add(3, cols, DType::kF32, {});
        }
        add(9, 64, DType::kBF16, {.extra_stride = 8});
        add(9, 6144, DType::kBF16, {.extra_stride = 3});
        add(9, 6144, DType::kBF16, {.shift_bytes = 2});
        add(1000, 1024, DType::kBF16, {});
        add(0, 64, DType::kBF16, {});
    }
}

void add_linears(std::vector<Case>& cases) {
    const auto add = [&](const std::string& what, const LinearSpec& spec) {
        cases.push_back({"norm_linear n=" + number(spec.n) + " in=" + number(spec.in) + " " + what,
                         [spec](Device& d) { test_linear(d, spec); }});
    };
    const OutputSpec plain{.size = 250};
    const OutputSpec silu{.size = 65, .activation = Activation::kSilu, .bias = true};
    const OutputSpec sigmoid{.size = 1000, .activation = Activation::kSigmoid};
    const OutputSpec gelu{.size = 256, .activation = Activation::kGelu, .bias = true};
    for (const std::int64_t n : {1, 2, 3, 4, 5, 17, 128}) {
        for (const std::int64_t in : {64, 256, 1000, 1024, 6144}) {
            add("several",
                {.n = n, .in = in, .normed = true, .outputs = {plain, silu, sigmoid, gelu}});
        }
        for (const std::int64_t in : {1, 7, 63, 65, 250})
            add("odd", {.n = n, .in = in, .normed = true, .outputs = {plain, silu}});
        for (const std::int64_t out : {1, 7, 63, 64, 65})
            add("to " + number(out), {.n = n, .in = 256, .outputs = {{.size = out, .bias = true}}});
        add("layer norm", {.n = n,
                           .in = 1024,
                           .norm = Norm::kLayer,
                           .normed = true,
                           .outputs = {{.size = 512, .bias = true}, plain}});
        add("no norm", {.n = n, .in = 1024, .norm = Norm::kNone, .outputs = {plain, gelu}});
        add("no norm, copied",
            {.n = n, .in = 1024, .norm = Norm::kNone, .normed = true, .outputs = {plain}});
        add("fp32", {.n = n,
                     .in = 6144,
                     .outputs = {{.size = 1000, .dtype = DType::kF32},
                                 {.size = 257, .bias = true, .dtype = DType::kF32}}});
        add("six outputs", {.n = n,
                            .in = 512,
                            .normed = true,
                            .outputs = {plain, silu, sigmoid, gelu, plain, silu}});
        add("shifted rows", {.n = n,
                             .in = 512,
                             .normed = true,
                             .outputs = {plain, silu},
                             .placing = {.shift_bytes = 2}});
        add("shifted weights", {.n = n, .in = 512, .outputs = {plain, gelu}, .weight_shift = 2});
        add("strided", {.n = n,
                        .in = 512,
                        .normed = true,
                        .outputs = {plain, silu},
                        .placing = {.extra_stride = 8}});
        add("odd strides", {.n = n,
                            .in = 512,
                            .normed = true,
                            .outputs = {plain, sigmoid},
                            .placing = {.extra_stride = 3}});
        add("only norm", {.n = n, .in = 6144, .normed = true, .outputs = {}});
    }
    for (const std::int64_t n : {1, 4, 17}) {
        add("real", {.n = n,
                     .in = 6144,
                     .normed = true,
                     .outputs = {{.size = 6144, .activation = Activation::kSilu},
                                 {.size = 2048, .activation = Activation::kSigmoid}}});
        add("wide", {.n = n, .in = 9216, .outputs = {{.size = 777}}});
        add("wider than shared memory for all rows", {.n = n, .in = 16384, .outputs = {plain}});
    }
    add("no rows", {.n = 0, .in = 64, .outputs = {plain}});
    cases.push_back({"norm_linear alone and together", test_alone_and_together});
}

void add_residuals(std::vector<Case>& cases) {
    const auto add = [&](const std::string& what, const ResidualSpec& spec) {
        cases.push_back({"linear_residual n=" + number(spec.n) + " " + number(spec.out) + "x" +
                             number(spec.in) + " " + what,
                         [spec](Device& d) { test_residual(d, spec); }});
    };
    for (const std::int64_t n : {1, 2, 3, 4, 5, 17, 128}) {
        for (const bool norm : {false, true}) {
            for (const bool gate : {false, true}) {
                const std::string what = std::string(norm ? "norm " : "") + (gate ? "gate" : "");
                add(what, {.n = n, .in = 1024, .out = 256, .norm = norm, .gate = gate});
                add(what + " in place",
                    {.n = n, .in = 512, .out = 264, .norm = norm, .gate = gate, .in_place = true});
            }
        }
        add("bias", {.n = n,
                     .in = 256,
                     .out = 320,
                     .norm = false,
                     .gate = false,
                     .bias = true,
                     .alpha = 1.0F});
        add("bias and factors", {.n = n, .in = 256, .out = 320, .bias = true, .beta = 0.5F});
        add("odd", {.n = n, .in = 63, .out = 65, .bias = true});
        add("shifted", {.n = n, .in = 512, .out = 256, .placing = {.shift_bytes = 2}});
        add("shifted weight", {.n = n, .in = 512, .out = 256, .weight_shift = 2});
        add("strided", {.n = n, .in = 512, .out = 256, .placing = {.extra_stride = 8}});
        add("odd strides in place",
            {.n = n, .in = 512, .out = 256, .in_place = true, .placing = {.extra_stride = 5}});
    }
    for (const std::int64_t n : {1, 4, 17}) {
        add("real", {.n = n, .in = 8192, .out = 6144});
        add("widest", {.n = n, .in = 9216, .out = 512, .norm = false, .gate = false});
    }
}

}  // namespace
}  // namespace longview::gpu_test

int main(int argc, char** argv) {
    using namespace longview::gpu_test;
    std::vector<Case> cases;
    add_norms(cases);
    add_linears(cases);
    add_residuals(cases);
    return run_cases(argc, argv, cases);
}

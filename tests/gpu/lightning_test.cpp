// Lightning attention on the GPU against the CPU form, from the same bf16 inputs.
//
// Bounds, as shares of the norm. A value rounded to bf16 is off by 1.7e-3 (rms over its binade).
//   state, blocked: one such rounding in each product (v times its decay): 1.7e-3; bound 2e-3.
//   outputs, blocked: the state's, the state as operand (or the scores), and the output's own:
//     sqrt(3) 1.7e-3 = 2.9e-3; bound 4e-3.
//   recurrence: fp32 but for the output: 1.7e-3, bound 2.5e-3; state 1e-5.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/lightning.h"
#include "kernels/cuda/ops.h"
#include "kernels/runtime/error.h"
#include "tests/gpu/gpu_test.h"

using namespace longview;
using namespace longview::kernels;
using namespace longview::gpu_test;

namespace {

constexpr double kOutBound = 4e-3;
constexpr double kStateBound = 2e-3;
constexpr double kStepOutBound = 2.5e-3;
constexpr double kStepStateBound = 1e-5;

// Layer 0's fastest head, the last lightning layer's slowest, and heads between.
const std::vector<float> kSlopes = {0.9170132F, 4.94853e-5F, 0.003906289F, 0.1F, 0.0126682F};

struct Problem {
    int heads = 1;
    int head_dim = 64;
    std::int64_t rows = 1;
    std::int64_t position = 0;
    std::vector<float> slopes;
    std::vector<float> qkv;    // [rows, heads * 3 * head_dim], values of bf16
    std::vector<float> state;  // [heads, head_dim, head_dim]

    std::int64_t width() const { return std::int64_t{heads} * head_dim; }
};

struct Result {
    std::vector<float> out;
    std::vector<float> state;
};

/// How a problem lies in memory and is run on the GPU.
struct Form {
    std::int64_t padding = 0;  // elements between rows
    std::size_t qkv_shift = 0;
    std::size_t out_shift = 0;
    std::vector<std::int64_t> calls = {};  // rows of each; empty: one call
    std::int64_t segments = 0;             // 0: as planned
    int stages = 0;                        // 0: as planned
};

Problem make_problem(int heads, int head_dim, std::int64_t rows, std::int64_t position = 0,
                     std::vector<float> slopes = kSlopes) {
    Problem p{heads, head_dim, rows, position, {}, {}, {}};
    Random random(static_cast<std::uint64_t>(rows * 1000 + heads * 10 + head_dim));
    for (int h = 0; h < heads; ++h)
        p.slopes.push_back(slopes[static_cast<std::size_t>(h) % slopes.size()]);
    p.qkv = random.normals_bf16(rows * 3 * p.width());
    p.state = random.normals(p.width() * head_dim, 4.0F);
    return p;
}

LightningParams params_of(const Problem& p) {
    LightningParams params;
    params.heads = p.heads;
    params.head_dim = p.head_dim;
    params.position = p.position;
    return params;
}

Result run_cpu(Device& d, const Problem& p) {
    Result r{std::vector<float>(static_cast<std::size_t>(p.rows * p.width())), p.state};
    LightningParams params = params_of(p);
    params.qkv = {p.qkv.data(), DType::kF32, p.rows, 3 * p.width(), 3 * p.width()};
    params.slopes = p.slopes.data();
    params.state = r.state.data();
    params.out = {r.out.data(), DType::kF32, p.rows, p.width(), p.width()};
    d.cpu().lightning_attention(params);
    return r;
}

/// [rows, cols] with `padding` NaN after each row.
std::vector<float> spread(const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
                          std::int64_t padding) {
    std::vector<float> wide(static_cast<std::size_t>(rows * (cols + padding)),
                            std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t i = 0; i < rows; ++i)
        std::copy_n(values.begin() + i * cols, cols, wide.begin() + i * (cols + padding));
    return wide;
}

Result run_gpu(Device& d, const Problem& p, const Form& form = {}) {
    const cuda::Context& c = d.context();
    const std::int64_t qkv_stride = 3 * p.width() + form.padding;
    const std::int64_t out_stride = p.width() + form.padding;
    const DeviceMemory qkv =
        upload_bf16(spread(p.qkv, p.rows, 3 * p.width(), form.padding), form.qkv_shift);
    const DeviceMemory out(static_cast<std::size_t>(p.rows * out_stride) * 2, form.out_shift);
    const DeviceMemory state = upload_f32(p.state);
    const DeviceMemory slopes = upload_f32(p.slopes);
    LightningParams params = params_of(p);
    params.qkv = {qkv.as<void>(), DType::kBF16, p.rows, 3 * p.width(), qkv_stride};
    params.slopes = slopes.as<float>();
    params.state = state.as<float>();
    params.out = {out.as<void>(), DType::kBF16, p.rows, p.width(), out_stride};
    std::vector<std::int64_t> calls = form.calls;
    if (calls.empty()) calls.push_back(p.rows);
    std::int64_t first = 0;
    for (const std::int64_t count : calls) {
        LightningParams part = params;
        part.qkv = params.qkv.slice(first, count);
        part.out = params.out.slice(first, count);
        part.position = p.position + first;
        first += count;
        if (form.segments == 0 && form.stages == 0) {
            cuda::lightning_attention(c, part);
            continue;
        }
        const std::int64_t tiles = cuda::lightning_tiles(part.position, count);
        cuda::LightningPlan plan = cuda::plan_lightning(p.heads, p.head_dim, tiles, c.device);
        if (form.stages != 0) plan.stages = form.stages;
        if (form.segments != 0) {
            plan.segments = form.segments;
            plan.segment_tiles = (tiles + form.segments - 1) / form.segments;
        }
        cuda::lightning_prefill(c, part, plan);
    }
    expect(first == p.rows, "the calls make up all rows");
    d.finish();
    for (const DeviceMemory* memory : {&qkv, &out, &state, &slopes}) memory->check_guards();

    const std::vector<float> wide = out.read_bf16();
    Result r{{}, state.read_f32()};
    for (std::int64_t i = 0; i < p.rows; ++i) {
        const auto row = wide.begin() + i * out_stride;
        r.out.insert(r.out.end(), row, row + p.width());
        expect(std::all_of(row + p.width(), row + out_stride, [](float x) { return x != x; }),
               "nothing is written between rows");
    }
    return r;
}

std::string describe(const Problem& p) {
    return std::to_string(p.heads) + " x " + std::to_string(p.head_dim) + ", " +
           std::to_string(p.rows) + " rows at " + std::to_string(p.position);
}

void expect_same(const std::string& what, const Result& got, const Result& want,
                 double out_bound = kOutBound, double state_bound = kStateBound) {
    expect_close(what + ": outputs", got.out, want.out, out_bound);
    expect_close(what + ": state", got.state, want.state, state_bound);
}

void expect_identical(const std::string& what, const Result& got, const Result& want) {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
        return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    expect(same(got.out, want.out), what + ": outputs agree bit for bit");
    expect(same(got.state, want.state), what + ": states agree bit for bit");
}

void compare(Device& d, const Problem& p, const Form& form = {}) {
    const bool steps = p.rows <= cuda::kLightningStepRows && form.segments == 0 && form.stages == 0;
    expect_same(describe(p), run_gpu(d, p, form), run_cpu(d, p), steps ? kStepOutBound : kOutBound,
                steps ? kStepStateBound : kStateBound);
}

constexpr std::array<std::int64_t, 13> kRows = {1,  2,   7,   8,   9,   63,  64,
                                                65, 127, 129, 191, 256, 1000};

void matches_the_cpu(Device& d, int heads, int head_dim) {
    for (const std::int64_t rows : kRows)
        if (heads <= 4 || rows <= 191) compare(d, make_problem(heads, head_dim, rows));
    if (heads <= 4) compare(d, make_problem(heads, head_dim, 4097));
}

void starts_anywhere(Device& d) {
    for (const std::int64_t position : {1, 37, 55, 56, 57, 63, 64, 1000003})
        for (const std::int64_t rows : {1, 8, 9, 15, 64, 200})
            compare(d, make_problem(2, 128, rows, position));
}

/// Each slope alone, so that no head hides in the norm of another; from decays that vanish in a
/// row to one that hardly acts.
void takes_every_slope(Device& d) {
    for (const float slope : {4.94853e-5F, 0.001F, 0.02F, 0.3F, 0.9170132F, 3.0F, 90.0F, 1000.0F})
        for (const std::int64_t rows : {1, 5, 300, 2000})
            for (const int head_dim : {64, 128})
                compare(d, make_problem(1, head_dim, rows, 3, {slope}));
}

void takes_strides_and_alignments(Device& d) {
    for (const std::int64_t rows : {3, 70, 300}) {
        const Problem p = make_problem(2, 128, rows, 5);
        compare(d, p, {.padding = 8});
        compare(d, p, {.padding = 3});
        compare(d, p, {.qkv_shift = 2});
        compare(d, p, {.out_shift = 2});
        compare(d, p, {.padding = 1, .qkv_shift = 6, .out_shift = 10});
    }
    compare(d, make_problem(1, 64, 9000, 5), {.qkv_shift = 2});  // copied in several parts
}

void takes_any_plan(Device& d) {
    for (const int head_dim : {64, 128}) {
        const Problem p = make_problem(3, head_dim, 1100, 21);
        const Result cpu = run_cpu(d, p);
        const Result one = run_gpu(d, p, {.segments = 1});
        expect_same("one segment", one, cpu);
        for (const std::int64_t segments : {2, 3, 9, 18}) {
            const Result many = run_gpu(d, p, {.segments = segments});
            expect_same(std::to_string(segments) + " segments", many, cpu);
            expect_same(std::to_string(segments) + " segments against one", many, one);
        }
        expect_identical("two stages", run_gpu(d, p, {.segments = 1, .stages = 2}), one);
    }
    for (const std::int64_t rows : {1, 8, 64})  // the blocked form, where steps would be chosen
        compare(d, make_problem(2, 128, rows, 60), {.segments = 1});
    for (const std::int64_t segments : {0, 1, 4}) {
        compare(d, make_problem(2, 32, 777, 9), {.segments = segments});
    }
}

void splits_agree(Device& d) {
    const Problem p = make_problem(2, 128, 517, 40);
    const Result whole = run_gpu(d, p, {.segments = 1});
    // 64-row tiles end after 24, 88, 152, ... rows. Steps and tiles round differently.
    expect_identical("split at tiles", run_gpu(d, p, {.calls = {24, 128, 365}, .segments = 1}),
                     whole);
    expect_same("split anywhere", run_gpu(d, p, {.calls = {100, 1, 7, 209, 200}}), whole);
    // The last piece, 5 rows, takes the recurrence whether it comes alone or not.
    const Problem many = make_problem(64, 128, 24 + 64 + 5, 40);
    expect_identical("short last call", run_gpu(d, many, {.calls = {24, 64, 5}}), run_gpu(d, many));
}

void steps_continue_a_prefill(Device& d) {
    const Problem p = make_problem(4, 128, 50, 64);
    const Result steps = run_gpu(d, p, {.calls = std::vector<std::int64_t>(50, 1)});
    expect_same("50 steps", steps, run_cpu(d, p), kStepOutBound, kStepStateBound);
    expect_same("50 steps against one call", steps, run_gpu(d, p), kOutBound, kStateBound);
    expect_identical("50 steps against calls of 8", run_gpu(d, p, {.calls = {8, 8, 8, 8, 8, 8, 2}}),
                     steps);
}

void is_recorded_in_a_graph(Device& d) {
    const Problem p = make_problem(4, 64, 1, 77);
    cuda::Context c = d.step_context(77, 0);
    const DeviceMemory qkv = upload_bf16(p.qkv);
    const DeviceMemory out(static_cast<std::size_t>(p.width()) * 2);
    const DeviceMemory state = upload_f32(p.state);
    const DeviceMemory slopes = upload_f32(p.slopes);
    LightningParams params = params_of(p);
    params.qkv = {qkv.as<void>(), DType::kBF16, 1, 3 * p.width(), 3 * p.width()};
    params.slopes = slopes.as<float>();
    params.state = state.as<float>();
    params.out = {out.as<void>(), DType::kBF16, 1, p.width(), p.width()};
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t run = nullptr;
    expect(cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess,
           "the capture begins");
    cuda::lightning_attention(c, params);
    expect(cudaStreamEndCapture(c.stream, &graph) == cudaSuccess, "the capture ends");
    expect(cudaGraphInstantiate(&run, graph, 0) == cudaSuccess, "the graph is usable");
    expect(cudaGraphLaunch(run, c.stream) == cudaSuccess, "the graph runs");
    d.finish();
    expect_same("recorded step", {out.read_bf16(), state.read_f32()}, run_cpu(d, p), kStepOutBound,
                kStepStateBound);
    cudaGraphExecDestroy(run);
    cudaGraphDestroy(graph);
}

void plans_fit_the_device(Device& /*d*/) {
    const cuda::DeviceLimits h200{132, 90, 232448, 50U << 20};
    const cuda::DeviceLimits small{46, 86, 101376, 4U << 20};
    for (const std::int64_t tiles : {1, 16, 64, 512, 16384}) {
        const cuda::LightningPlan real = cuda::plan_lightning(64, 128, tiles, h200);
        expect(real.segments == 1 && real.segment_tiles == tiles && real.stages == 3,
               "64 heads fill an H200 without segments");
        expect(cuda::plan_lightning(64, 128, tiles, small).stages == 2, "two tiles fit 99 KB");
        for (const int heads : {1, 4, 8, 32}) {
            const cuda::LightningPlan plan = cuda::plan_lightning(heads, 64, tiles, h200);
            expect(plan.segments * plan.segment_tiles >= tiles &&
                       (plan.segments - 1) * plan.segment_tiles < tiles,
                   "the segments make up all tiles, none is empty");
        }
    }
    expect(cuda::plan_lightning(4, 64, 1024, h200).segments > 16, "few heads are cut");
    expect(cuda::plan_lightning(4, 64, 8, h200).segments == 1, "short calls are not");
    try {
        cuda::plan_lightning(4, 96, 8, h200);
        expect(false, "a head_dim without a kernel is refused");
    } catch (const Error& e) {
        expect(e.category() == Category::kUnsupported, "as unsupported");
    }
}

void does_nothing_without_rows(Device& d) {
    LightningParams params;
    params.heads = 4;
    params.head_dim = 64;
    cuda::lightning_attention(d.context(), params);
    d.finish();
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<Case> cases = {
        {"lightning.plans_fit_the_device", plans_fit_the_device},
        {"lightning.does_nothing_without_rows", does_nothing_without_rows},
    };
    for (const int heads : {1, 4, 64})
        for (const int head_dim : {64, 128})
            cases.push_back(
                {"lightning.matches_the_cpu " + std::to_string(heads) + " x " +
                     std::to_string(head_dim),
                 [heads, head_dim](Device& d) { matches_the_cpu(d, heads, head_dim); }});
    const std::vector<Case> more = {
        {"lightning.starts_anywhere", starts_anywhere},
        {"lightning.takes_every_slope", takes_every_slope},
        {"lightning.takes_strides_and_alignments", takes_strides_and_alignments},
        {"lightning.takes_any_plan", takes_any_plan},
        {"lightning.splits_agree", splits_agree},
        {"lightning.steps_continue_a_prefill", steps_continue_a_prefill},
        {"lightning.is_recorded_in_a_graph", is_recorded_in_a_graph},
    };
    cases.insert(cases.end(), more.begin(), more.end());
    return run_cases(argc, argv, cases);
}

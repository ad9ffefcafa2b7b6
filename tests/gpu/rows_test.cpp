// Embedding, gathering, conversions and sampling on the GPU against the CPU.
#include <cuda_runtime_api.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.h"
#include "tests/gpu/gpu_test.h"

using namespace longview;
using namespace longview::gpu_test;
using namespace longview::kernels;

namespace {

void embeds(Device& device, std::int64_t cols, std::int64_t rows, std::size_t shift) {
    constexpr std::int64_t kVocab = 301;
    Random random(1);
    const std::vector<float> table = random.normals_bf16(kVocab * cols);
    const DeviceMemory on_device = upload_bf16(table);
    std::vector<std::int32_t> ids;
    for (std::int64_t r = 0; r < rows; ++r)
        ids.push_back(static_cast<std::int32_t>(random.next() % kVocab));
    const DeviceMemory id_memory = upload_i32(ids);
    const std::int64_t stride = cols + 3;
    const DeviceMemory out(static_cast<std::size_t>(rows * stride * 2), shift);
    const WeightView view{on_device.as<void>(), DType::kBF16, kVocab, cols};
    cuda::embed(device.context(), view, id_memory.as<std::int32_t>(),
                {out.as<void>(), DType::kBF16, rows, cols, stride});
    device.finish();
    const std::vector<float> got = out.read_bf16();
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < stride; ++i) {
            const float g = got[static_cast<std::size_t>(r * stride + i)];
            if (i >= cols) {
                expect(std::isnan(g), "written between the rows");
            } else {
                expect(g == table[static_cast<std::size_t>(ids[static_cast<std::size_t>(r)] * cols +
                                                           i)],
                       "another value than the table's");
            }
        }
    out.check_guards();

    // The id of a recorded step.
    const DeviceMemory one(static_cast<std::size_t>(cols * 2));
    cuda::embed(device.step_context(5, 77), view, nullptr,
                {one.as<void>(), DType::kBF16, 1, cols, cols});
    device.finish();
    const std::vector<float> step = one.read_bf16();
    for (std::int64_t i = 0; i < cols; ++i)
        expect(step[static_cast<std::size_t>(i)] == table[static_cast<std::size_t>(77 * cols + i)],
               "a step reads its own id");
}

void gathers(Device& device) {
    constexpr std::int64_t kRows = 50;
    constexpr std::int64_t kCols = 136;
    Random random(2);
    const std::vector<float> table = random.normals_bf16(kRows * kCols);
    const std::vector<float> fallback = random.normals_bf16(kCols);
    const DeviceMemory t = upload_bf16(table);
    const DeviceMemory f = upload_f32(fallback);
    std::vector<std::int32_t> index;
    for (int i = 0; i < 70; ++i) index.push_back(static_cast<std::int32_t>(random.next() % 51) - 1);
    const DeviceMemory ids = upload_i32(index);
    const DeviceMemory out(index.size() * kCols * 2);
    const auto rows = static_cast<std::int64_t>(index.size());
    cuda::gather_rows(device.context(), {t.as<void>(), DType::kBF16, kRows, kCols, kCols},
                      f.as<float>(), ids.as<std::int32_t>(),
                      {out.as<void>(), DType::kBF16, rows, kCols, kCols});
    device.finish();
    const std::vector<float> got = out.read_bf16();
    for (std::size_t r = 0; r < index.size(); ++r)
        for (std::size_t i = 0; i < kCols; ++i)
            expect(got[r * kCols + i] ==
                       (index[r] < 0 ? fallback[i]
                                     : table[static_cast<std::size_t>(index[r]) * kCols + i]),
                   "another row than the index names");
    out.check_guards();
}

void converts(Device& device) {
    const std::vector<float> values = Random(3).normals(10'007, 3.0F);
    const DeviceMemory from = upload_f32(values);
    const DeviceMemory to(2 * values.size());
    cuda::convert(device.context(), from.as<void>(), DType::kF32, to.as<void>(), DType::kBF16,
                  static_cast<std::int64_t>(values.size()));
    device.finish();
    const std::vector<float> got = to.read_bf16();
    for (std::size_t i = 0; i < values.size(); ++i)
        expect(got[i] == from_bf16(to_bf16(values[i])), "not the nearest bf16 value");
    to.check_guards();
}

/// Many draws: the GPU chooses what the CPU chooses. Their sums round differently, so a draw that
/// falls on the border of two ids may differ, at most once in some thousand.
void samples(Device& device, std::int64_t vocab, const SampleParams& base,
             const std::string& what) {
    Random random(static_cast<std::uint64_t>(vocab));
    std::vector<float> logits = random.normals(vocab, 3.0F);
    for (std::int64_t i = 0; i < vocab / 7; ++i)  // ties
        logits[static_cast<std::size_t>(random.next() % static_cast<std::uint64_t>(vocab))] = 2.5F;
    std::vector<std::uint8_t> suppressed(static_cast<std::size_t>(vocab));
    for (std::size_t i = 0; i < suppressed.size(); ++i) suppressed[i] = i % 11 == 3 ? 1 : 0;
    std::vector<std::int32_t> history;
    for (int i = 0; i < 100; ++i)
        history.push_back(
            static_cast<std::int32_t>(random.next() % static_cast<std::uint64_t>(vocab)));
    DeviceMemory on_device = upload_f32(logits);
    DeviceMemory suppressed_device(suppressed.size());
    suppressed_device.write(suppressed.data(), suppressed.size());
    const DeviceMemory history_device = upload_i32(history);
    const DeviceMemory result(sizeof(cuda::SampleResult));
    const int draws = small_run() ? 3 : 200;
    int different = 0;
    for (int i = 0; i < draws; ++i) {
        SampleParams p = base;
        p.vocab = vocab;
        p.logits = logits.data();
        p.suppressed = suppressed.data();
        p.history = history.data();
        p.history_length = static_cast<std::int64_t>(history.size());
        p.seed = 12345;
        p.step = static_cast<std::uint64_t>(i);
        const std::int32_t want = device.cpu().sample(p);
        p.logits = on_device.as<float>();
        p.suppressed = suppressed_device.as<std::uint8_t>();
        p.history = history_device.as<std::int32_t>();
        cuda::sample(device.context(), p, result.as<cuda::SampleResult>());
        device.finish();
        const std::vector<std::int32_t> got = result.read_i32();
        expect(got[0] >= 0 && got[0] < vocab && suppressed[static_cast<std::size_t>(got[0])] == 0,
               "an id that may not be chosen: " + std::to_string(got[0]));
        expect(got[1] == -1, "scores called broken");
        different += got[0] != want ? 1 : 0;
    }
    expect(different <= 1, what + ": " + std::to_string(different) + " of " +
                               std::to_string(draws) + " draws differ");
}

void names_broken_scores(Device& device) {
    std::vector<float> logits(1000, 0.5F);
    logits[321] = NAN;
    const DeviceMemory memory = upload_f32(logits);
    const DeviceMemory result(sizeof(cuda::SampleResult));
    SampleParams p;
    p.logits = memory.as<float>();
    p.vocab = 1000;
    cuda::sample(device.context(), p, result.as<cuda::SampleResult>());
    device.finish();
    expect(result.read_i32()[1] == 321, "a score that is not a number goes unnoticed");
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<Case> cases;
    for (const std::int64_t cols : {1, 7, 64, 250, 6144})
        for (const std::int64_t rows : {0, 1, 33})
            for (const std::size_t shift : {std::size_t{0}, std::size_t{2}})
                cases.push_back({"embed " + std::to_string(rows) + "x" + std::to_string(cols) +
                                     " shift " + std::to_string(shift),
                                 [=](Device& d) { embeds(d, cols, rows, shift); }});
    cases.push_back({"gather_rows", gathers});
    cases.push_back({"convert", converts});
    cases.push_back({"sample names broken scores", names_broken_scores});
    struct Setting {
        const char* name;
        SampleParams p;
    };
    const std::vector<Setting> settings{
        {"greedy", {}},
        {"greedy with penalties",
         {.repetition_penalty = 1.3F, .presence_penalty = 0.5F, .frequency_penalty = 0.25F}},
        {"temperature", {.temperature = 0.9F}},
        {"hot", {.temperature = 20.0F}},
        {"cold", {.temperature = 0.01F}},
        {"top_k 1", {.temperature = 1.0F, .top_k = 1}},
        {"top_k 40", {.temperature = 1.0F, .top_k = 40}},
        {"top_p 0", {.temperature = 1.0F, .top_p = 0.0F}},
        {"top_p 0.9", {.temperature = 1.0F, .top_p = 0.9F}},
        {"min_p", {.temperature = 1.0F, .min_p = 0.05F}},
        {"all filters",
         {.temperature = 1.2F,
          .top_k = 300,
          .top_p = 0.95F,
          .min_p = 0.01F,
          .repetition_penalty = 1.1F}}};
    for (const std::int64_t vocab : {1, 12, 1000, 2016, 200064})
        for (const Setting& s : settings)
            cases.push_back(
                {"sample " + std::string(s.name) + ", " + std::to_string(vocab) + " ids",
                 [vocab, s](Device& d) { samples(d, vocab, s.p, s.name); }});
    return run_cases(argc, argv, cases);
}

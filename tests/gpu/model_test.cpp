// The whole demo model on the GPU: against the CPU backend, in any split of a prompt, through the
// recorded decode step; cancelling, full memory, and what a broken device looks like.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/runtime/cancel.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/decoder/decoder.h"
#include "tests/gpu/gpu_test.h"

using namespace longview;
using namespace longview::gpu_test;
using namespace longview::llm;

namespace {

using Clock = std::chrono::steady_clock;

/// Logits of a bf16 run against fp32, and of the same arithmetic cut differently: relative to their
/// norm, the median of several positions. On random ids, which the model never learned to read,
/// some position has two experts of nearly equal score; rounding then chooses another one, and the
/// logits there differ more.
constexpr double kTypicalBound = 0.05;
constexpr double kWorstBound = 0.5;

class Differences {
  public:
    void add(const std::string& what, const std::vector<float>& got,
             const std::vector<float>& want) {
        expect_close(what, got, want, kWorstBound);
        all_.push_back(difference(got, want).relative);
    }
    void expect_small() {
        std::sort(all_.begin(), all_.end());
        const double median = all_[all_.size() / 2];
        std::printf("        relative differences: median %.4f, largest %.4f\n", median,
                    all_.back());
        expect(median <= kTypicalBound, "typical difference " + std::to_string(median));
    }

  private:
    std::vector<double> all_;
};

struct Loaded {
    std::unique_ptr<kernels::Backend> backend;
    std::unique_ptr<WeightStore> weights;
    std::unique_ptr<Decoder> decoder;
};

class Models {
  public:
    static Models& get() {
        static Models models;
        return models;
    }
    const ModelConfig& config() const { return checkpoint_->config(); }
    Loaded& gpu() { return gpu_; }
    Loaded& cpu() { return cpu_; }
    Loaded load(std::unique_ptr<kernels::Backend> backend, std::int64_t chunk) const {
        Loaded l;
        l.backend = std::move(backend);
        l.weights = std::make_unique<WeightStore>(*l.backend, config(), *checkpoint_);
        l.decoder = std::make_unique<Decoder>(*l.backend, config(), *l.weights,
                                              DecoderOptions{.chunk_tokens = chunk});
        return l;
    }

  private:
    Models()
        : checkpoint_(Checkpoint::open("resources/demo-model")),
          gpu_(load(kernels::make_cuda_backend(), 4096)),
          cpu_(load(kernels::make_cpu_backend(pool_), 512)) {}

    ThreadPool pool_{0};
    std::unique_ptr<Checkpoint> checkpoint_;
    Loaded gpu_, cpu_;
};

std::vector<std::int32_t> some_ids(std::int64_t count, std::uint64_t seed) {
    Random random(seed);
    const auto vocab = static_cast<std::uint64_t>(Models::get().config().text.vocab_size);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.next() % vocab);
    return ids;
}

std::vector<float> logits_of(const Loaded& m, const float* logits) {
    std::vector<float> out(static_cast<std::size_t>(Models::get().config().text.vocab_size));
    m.backend->copy_out(out.data(), logits, out.size() * sizeof(float));
    return out;
}

std::vector<float> read(const Loaded& m, SequenceState& state, std::span<const std::int32_t> ids) {
    PrefillInput input;
    input.ids = ids;
    return logits_of(m, m.decoder->prefill(state, input).logits);
}

void agrees_with_cpu(std::int64_t tokens) {
    Models& models = Models::get();
    const std::vector<std::int32_t> ids = some_ids(tokens, 3);
    SequenceState on_gpu = models.gpu().decoder->new_state();
    SequenceState on_cpu = models.cpu().decoder->new_state();
    Differences differences;
    differences.add("prefill", read(models.gpu(), on_gpu, ids), read(models.cpu(), on_cpu, ids));
    constexpr std::int64_t kSteps = 20;
    on_gpu.prepare(kSteps);
    on_cpu.prepare(kSteps);
    for (const std::int32_t id : some_ids(kSteps, 4))
        differences.add("step", logits_of(models.gpu(), models.gpu().decoder->step(on_gpu, id)),
                        logits_of(models.cpu(), models.cpu().decoder->step(on_cpu, id)));
    differences.expect_small();
}

/// The rest of a prompt is read after any cut, then some steps follow.
void any_split_agrees(std::int64_t tokens) {
    Loaded& m = Models::get().gpu();
    const std::vector<std::int32_t> ids = some_ids(tokens, 5);
    const std::vector<std::int32_t> more = some_ids(6, 14);
    const auto run = [&](std::int64_t cut) {
        SequenceState state = m.decoder->new_state();
        const std::span all(ids);
        if (cut > 0) read(m, state, all.first(static_cast<std::size_t>(cut)));
        std::vector<std::vector<float>> logits{
            read(m, state, all.subspan(static_cast<std::size_t>(cut)))};
        state.prepare(static_cast<std::int64_t>(more.size()));
        for (const std::int32_t id : more)
            logits.push_back(logits_of(m, m.decoder->step(state, id)));
        return logits;
    };
    const std::vector<std::vector<float>> want = run(0);
    Differences differences;
    const auto compare = [&](const std::string& what, const std::vector<std::vector<float>>& got) {
        for (std::size_t i = 0; i < want.size(); ++i) differences.add(what, got[i], want[i]);
    };
    for (const std::int64_t cut : {std::int64_t{1}, std::int64_t{63}, tokens / 3, tokens - 1})
        if (cut > 0 && cut < tokens) compare("cut at " + std::to_string(cut), run(cut));
    if (tokens <= 600) {
        // All by steps: first direct, then recorded, then replayed.
        SequenceState state = m.decoder->new_state();
        state.prepare(tokens + static_cast<std::int64_t>(more.size()));
        std::vector<std::vector<float>> got(1);
        for (const std::int32_t id : ids) got[0] = logits_of(m, m.decoder->step(state, id));
        for (const std::int32_t id : more) got.push_back(logits_of(m, m.decoder->step(state, id)));
        compare("by steps", got);
    }
    differences.expect_small();
}

/// The same work twice gives the same bits, also with other work in between.
void repeats_exactly() {
    Loaded& m = Models::get().gpu();
    const std::vector<std::int32_t> ids = some_ids(777, 6);
    std::vector<std::vector<float>> runs;
    for (int round = 0; round < 3; ++round) {
        SequenceState state = m.decoder->new_state();
        std::vector<float> all = read(m, state, ids);
        state.prepare(8);
        for (const std::int32_t id : some_ids(8, 7)) {
            const std::vector<float> one = logits_of(m, m.decoder->step(state, id));
            all.insert(all.end(), one.begin(), one.end());
        }
        runs.push_back(std::move(all));
        SequenceState other = m.decoder->new_state();
        read(m, other, some_ids(100 + 50 * round, 8));
    }
    expect(runs[0] == runs[1] && runs[1] == runs[2], "three equal runs differ");
}

void forks_go_their_ways() {
    Loaded& m = Models::get().gpu();
    SequenceState base = m.decoder->new_state();
    read(m, base, some_ids(300, 9));
    const auto run = [&](SequenceState state, std::uint64_t seed) {
        state.prepare(10);
        std::vector<float> logits;
        for (const std::int32_t id : some_ids(10, seed))
            logits = logits_of(m, m.decoder->step(state, id));
        return logits;
    };
    const std::vector<float> first = run(base.fork(), 1);
    const std::vector<float> second = run(base.fork(), 2);
    expect(first != second, "different continuations differ");
    expect(run(base.fork(), 1) == first, "a fork repeats what the other fork did not disturb");
}

void cancels_quickly() {
    Loaded& m = Models::get().gpu();
    const std::vector<std::int32_t> ids = some_ids(400'000, 10);
    CancelFlag flag;
    m.backend->set_cancel_flag(&flag);
    Clock::time_point asked;
    std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(150));
        asked = Clock::now();
        flag.raise();
    });
    SequenceState state = m.decoder->new_state();
    bool cancelled = false;
    try {
        PrefillInput input;
        input.ids = ids;
        m.decoder->prefill(state, input);
    } catch (const Error& error) {
        cancelled = error.category() == Category::kCancelled;
    }
    const Clock::time_point thrown = Clock::now();
    m.backend->synchronize();
    const Clock::time_point idle = Clock::now();
    other.join();
    m.backend->set_cancel_flag(nullptr);
    expect(cancelled, "the prefill was not cancelled");
    const auto ms = [&](Clock::time_point t) {
        return std::chrono::duration<double, std::milli>(t - asked).count();
    };
    std::printf("        cancelled after %.1f ms, device idle after %.1f ms\n", ms(thrown),
                ms(idle));
    expect(ms(idle) < 100.0, "cancelling took longer than 100 ms");
    expect(state.position() == 0, "a cancelled prefill leaves the state as it was");
    SequenceState again = m.decoder->new_state();
    read(m, again, some_ids(50, 11));
}

void full_memory_is_an_error() {
    Models& models = Models::get();
    Loaded small = models.load(
        kernels::make_cuda_backend({.memory_limit_bytes = std::uint64_t{192} << 20}), 4096);
    SequenceState state = small.decoder->new_state();
    bool refused = false;
    try {
        read(small, state, some_ids(200'000, 12));
    } catch (const Error& error) {
        refused = error.category() == Category::kMemory;
        std::printf("        %s\n", error.what());
    }
    expect(refused, "a prompt beyond the memory was not refused");
    SequenceState again = small.decoder->new_state();
    SequenceState same = models.gpu().decoder->new_state();
    const std::vector<std::int32_t> ids = some_ids(200, 13);
    expect(read(small, again, ids) == read(models.gpu(), same, ids),
           "after a refusal the engine computes as before");
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<Case> cases;
    for (const std::int64_t n : {1, 2, 5, 17, 64, 65, 300, 3000})
        cases.push_back({"agrees with the CPU, " + std::to_string(n) + " tokens",
                         [n](Device&) { agrees_with_cpu(n); }});
    for (const std::int64_t n : {2, 70, 515, 5000})
        cases.push_back({"any split agrees, " + std::to_string(n) + " tokens",
                         [n](Device&) { any_split_agrees(n); }});
    cases.push_back({"repeats exactly", [](Device&) { repeats_exactly(); }});
    cases.push_back({"forks go their ways", [](Device&) { forks_go_their_ways(); }});
    cases.push_back({"cancels quickly", [](Device&) { cancels_quickly(); }});
    cases.push_back({"full memory is an error", [](Device&) { full_memory_is_an_error(); }});
    return run_cases(argc, argv, cases);
}

// Lightning attention on a GPU at MiniMax-VL-01's sizes, one layer: prefill in long calls and the
// decoding step; and the demo model's prefill, where heads are cut into segments.
//   lightning_cuda_bench [JSON file]
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/lightning.h"
#include "kernels/cuda/ops.h"

using namespace longview;
using namespace longview::kernels;

namespace {

/// Device memory of the benchmark.
class Memory {
  public:
    explicit Memory(std::size_t size_bytes) {
        cuda::check(cudaMalloc(&data_, size_bytes), "memory of the benchmark");
    }
    ~Memory() { cudaFree(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* data() const { return data_; }

  private:
    void* data_ = nullptr;
};

/// Blocks one after the other; reset() before each call.
class BenchScratch : public cuda::Scratch {
  public:
    explicit BenchScratch(std::size_t size_bytes) : memory_(size_bytes), size_(size_bytes) {}
    void* take(std::size_t size_bytes) override {
        const std::size_t at = used_;
        used_ += (size_bytes + 255) / 256 * 256;
        cuda::check(used_ <= size_ ? cudaSuccess : cudaErrorMemoryAllocation, "scratch memory");
        return static_cast<char*>(memory_.data()) + at;
    }
    void* take_pinned(std::size_t) override { return nullptr; }  // no launcher here needs it
    void reset() { used_ = 0; }

  private:
    Memory memory_;
    std::size_t size_, used_ = 0;
};

struct Model {
    const char* name;
    int heads;
    int head_dim;
};

constexpr Model kReal = {"64 x 128", 64, 128};
constexpr Model kDemo = {"4 x 64", 4, 64};

cuda::Context make_context(cudaStream_t stream) {
    cuda::Context c;
    c.stream = stream;
    int device = 0;
    cudaDeviceProp properties{};
    cuda::check(cudaGetDevice(&device), "device");
    cuda::check(cudaGetDeviceProperties(&properties, device), "device");
    c.device.sm_count = properties.multiProcessorCount;
    c.device.compute = 10 * properties.major + properties.minor;
    c.device.shared_memory_bytes = properties.sharedMemPerBlockOptin;
    c.device.l2_bytes = static_cast<std::size_t>(properties.l2CacheSize);
    return c;
}

void measure(bench::Report& report, cuda::Context c, BenchScratch& scratch, const Model& model,
             std::int64_t rows, float slope_factor, std::int64_t segments = 0, int stages = 0) {
    const std::int64_t width = std::int64_t{model.heads} * model.head_dim;
    const auto qkv_count = static_cast<std::size_t>(rows * 3 * width);
    const auto out_count = static_cast<std::size_t>(rows * width);
    const auto state_count = static_cast<std::size_t>(width * model.head_dim);
    const bool step = rows == 1;
    const double bytes = step ? 8.0 * static_cast<double>(state_count)
                              : 2.0 * static_cast<double>(qkv_count + out_count);

    struct Set {
        std::unique_ptr<Memory> qkv, out, state;
    };
    std::vector<Set> sets(
        static_cast<std::size_t>(bench::rotation(2 * (qkv_count + out_count) + 4 * state_count)));
    std::uint64_t seed = 1;
    for (Set& s : sets) {
        s.qkv = std::make_unique<Memory>(qkv_count * 2);
        s.out = std::make_unique<Memory>(out_count * 2);
        s.state = std::make_unique<Memory>(state_count * 4);
        bench::fill_random_bf16(s.qkv->data(), qkv_count, 1.0F, seed++, c.stream);
        bench::fill_random_f32(static_cast<float*>(s.state->data()), state_count, 1.0F, seed++,
                               c.stream);
    }
    std::vector<float> slopes;  // model-spec 3.3
    for (int h = 0; h < model.heads; ++h)
        slopes.push_back(slope_factor * std::exp2(-8.0F * static_cast<float>(h + 1) /
                                                  static_cast<float>(model.heads)));
    const Memory device_slopes(slopes.size() * sizeof(float));
    cuda::check(cudaMemcpy(device_slopes.data(), slopes.data(), slopes.size() * sizeof(float),
                           cudaMemcpyHostToDevice),
                "slopes");

    const double seconds = bench::median_seconds(c.stream, [&](int i) {
        const Set& s = sets[static_cast<std::size_t>(i) % sets.size()];
        LightningParams p;
        p.qkv = {s.qkv->data(), DType::kBF16, rows, 3 * width, 3 * width};
        p.heads = model.heads;
        p.head_dim = model.head_dim;
        p.slopes = static_cast<const float*>(device_slopes.data());
        p.state = static_cast<float*>(s.state->data());
        p.out = {s.out->data(), DType::kBF16, rows, width, width};
        scratch.reset();
        if (segments == 0) return cuda::lightning_attention(c, p);
        const std::int64_t tiles = cuda::lightning_tiles(0, rows);
        cuda::lightning_prefill(c, p, {segments, (tiles + segments - 1) / segments, stages});
    });
    // Per row and head: the state read and updated; in tiles also half a tile of scores, twice.
    const double pairs = step ? 0.0 : static_cast<double>(kLightningTile + 1) / 2.0;
    const double flops = 4.0 * static_cast<double>(rows * width) * (model.head_dim + pairs);
    std::string name = std::string(model.name) + " n=" + std::to_string(rows);
    if (segments != 0)
        name +=
            ", " + std::to_string(segments) + " segments, " + std::to_string(stages) + " stages";
    report.add(name, seconds, bytes, flops);
}

}  // namespace

int main(int argc, char** argv) {
    cudaStream_t stream = nullptr;
    cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    {
        cuda::Context c = make_context(stream);
        BenchScratch scratch(std::size_t{256} << 20);
        c.scratch = &scratch;
        bench::Report report("lightning", bench::measure_ceilings(stream),
                             argc == 3 && std::string_view(argv[1]) == "--json" ? argv[2] : "");
        // Layer 40's slopes: fast and slow heads together.
        constexpr float kFactor = 1.0F - 40.0F / 79.0F;
        for (const std::int64_t rows : {1, 1024, 4096, 32768, 131072})
            measure(report, c, scratch, kReal, rows, kFactor);
        for (const std::int64_t rows : {1, 1024, 16384, 131072})
            measure(report, c, scratch, kDemo, rows, kFactor);
        // What the plan chooses from.
        for (const std::int64_t rows : {1024, 4096, 32768})
            for (const int stages : {2, 3})
                for (const std::int64_t segments : {1, 2, 4})
                    measure(report, c, scratch, kReal, rows, kFactor, segments, stages);
    }
    cudaStreamDestroy(stream);
    return 0;
}

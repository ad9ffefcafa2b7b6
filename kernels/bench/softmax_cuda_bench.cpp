// Softmax attention on a GPU at MiniMax-VL-01's sizes: causal prefill, decoding over a long cache,
// and the vision tower's attention. Argument: where the JSON file goes.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/ops.h"

using namespace longview;
using namespace longview::kernels;

namespace {

constexpr int kHeads = 64;
constexpr int kKvHeads = 8;
constexpr int kDim = 128;
constexpr std::int64_t kPageTokens = 256;
// Beyond this one set of buffers passes any L2 cache by far.
constexpr std::size_t kLargeSet = std::size_t{2} << 30;

class DeviceBlock {
  public:
    explicit DeviceBlock(std::size_t size_bytes) {
        cuda::check(cudaMalloc(&data_, size_bytes), "cudaMalloc");
    }
    DeviceBlock(DeviceBlock&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    DeviceBlock(const DeviceBlock&) = delete;
    DeviceBlock& operator=(const DeviceBlock&) = delete;
    ~DeviceBlock() { cudaFree(data_); }
    void* data() const { return data_; }

  private:
    void* data_ = nullptr;
};

/// One block, handed out from its start again for every operator.
class BenchScratch : public cuda::Scratch {
  public:
    void* take(std::size_t size_bytes) override {
        const std::size_t at = used_;
        used_ += (size_bytes + 255) / 256 * 256;
        LONGVIEW_CHECK(used_ <= kSize, "the benchmark's scratch memory is too small");
        return static_cast<std::byte*>(block_.data()) + at;
    }
    void* take_pinned(std::size_t) override {
        LONGVIEW_CHECK(false, "not needed here");
        return nullptr;
    }
    void restart() { used_ = 0; }

  private:
    static constexpr std::size_t kSize = std::size_t{256} << 20;
    DeviceBlock block_{kSize};
    std::size_t used_ = 0;
};

struct Bench {
    cudaStream_t stream = nullptr;
    BenchScratch scratch;
    cuda::Context context;

    Bench() {
        cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
        cudaDeviceProp device{};
        cuda::check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
        context.stream = stream;
        context.device = {device.multiProcessorCount, 10 * device.major + device.minor,
                          device.sharedMemPerBlockOptin,
                          static_cast<std::size_t>(device.l2CacheSize)};
        context.scratch = &scratch;
    }
    ~Bench() { cudaStreamDestroy(stream); }
};

/// bf16 values on the device.
DeviceBlock random_block(const Bench& b, std::int64_t count, std::uint64_t seed) {
    DeviceBlock block(static_cast<std::size_t>(count) * 2);
    bench::fill_random_bf16(block.data(), static_cast<std::size_t>(count), 1.0F, seed, b.stream);
    return block;
}

Matrix matrix(const DeviceBlock& block, std::int64_t rows, std::int64_t cols) {
    return {block.data(), DType::kBF16, rows, cols, cols};
}

/// Queries, their results and the pages of one layer.
struct Problem {
    DeviceBlock q, out, cache, table;
    SoftmaxAttentionParams params;

    Problem(const Bench& b, std::int64_t rows, std::int64_t position, std::uint64_t seed)
        : q(random_block(b, rows * kHeads * kDim, seed)),
          out(random_block(b, rows * kHeads * kDim, seed)),
          cache(random_block(b, pages(position + rows) * kPageValues, seed + 1)),
          table(static_cast<std::size_t>(pages(position + rows)) * sizeof(void*)) {
        std::vector<void*> addresses;
        for (std::int64_t i = 0; i < pages(position + rows); ++i)
            addresses.push_back(static_cast<std::byte*>(cache.data()) + i * kPageValues * 2);
        cuda::check(cudaMemcpy(table.data(), addresses.data(), addresses.size() * sizeof(void*),
                               cudaMemcpyHostToDevice),
                    "cudaMemcpy");
        params.q = matrix(q, rows, std::int64_t{kHeads} * kDim);
        params.out = matrix(out, rows, std::int64_t{kHeads} * kDim);
        params.heads = kHeads;
        params.scale = 1.0F / std::sqrt(static_cast<float>(kDim));
        params.position = position;
        params.kv = {
            static_cast<void* const*>(table.data()), kPageTokens, 0, DType::kBF16, kKvHeads, kDim};
    }

    static constexpr std::int64_t kPageValues = 2 * kKvHeads * kPageTokens * kDim;
    static std::int64_t pages(std::int64_t positions) {
        return (positions + kPageTokens - 1) / kPageTokens;
    }
};

void measure_softmax(Bench& b, bench::Report& report, const std::string& name, std::int64_t rows,
                     std::int64_t position) {
    const double kv_bytes = 4.0 * static_cast<double>((position + rows) * kKvHeads * kDim);
    const double row_bytes = 4.0 * static_cast<double>(rows * kHeads * kDim);
    const auto set_bytes = static_cast<std::size_t>(kv_bytes + row_bytes);
    const int sets = set_bytes > kLargeSet ? 1 : bench::rotation(set_bytes);
    std::vector<Problem> problems;
    problems.reserve(static_cast<std::size_t>(sets));
    for (int i = 0; i < sets; ++i)
        problems.emplace_back(b, rows, position, static_cast<std::uint64_t>(2 * i + 1));
    const double seconds = bench::median_seconds(b.stream, [&](int i) {
        b.scratch.restart();
        cuda::softmax_attention(b.context, problems[static_cast<std::size_t>(i % sets)].params);
    });
    const double keys = static_cast<double>(position) + (static_cast<double>(rows) + 1.0) / 2.0;
    report.add(name, seconds, kv_bytes + row_bytes,
               4.0 * static_cast<double>(rows * kHeads * kDim) * keys);
}

void measure_vit(Bench& b, bench::Report& report, std::int64_t tiles) {
    constexpr std::int64_t kTokens = 577;
    constexpr int kVitHeads = 16;
    constexpr std::int64_t kWidth = std::int64_t{kVitHeads} * 64;
    const std::int64_t rows = tiles * kTokens;
    const double bytes = 8.0 * static_cast<double>(rows * kWidth);
    const int sets = bench::rotation(static_cast<std::size_t>(bytes));
    std::vector<DeviceBlock> blocks;  // qkv and out of each set
    for (int i = 0; i < sets; ++i) {
        blocks.push_back(random_block(b, rows * 3 * kWidth, static_cast<std::uint64_t>(i)));
        blocks.emplace_back(static_cast<std::size_t>(rows * kWidth) * 2);
    }
    const double seconds = bench::median_seconds(b.stream, [&](int i) {
        const auto set = static_cast<std::size_t>(i % sets);
        const auto part = [&](std::int64_t which) {
            auto* const first = static_cast<std::uint16_t*>(blocks[2 * set].data());
            return ConstMatrix(first + which * kWidth, DType::kBF16, rows, kWidth, 3 * kWidth);
        };
        VitAttentionParams p;
        p.q = part(0);
        p.k = part(1);
        p.v = part(2);
        p.num_tiles = tiles;
        p.tokens = kTokens;
        p.heads = kVitHeads;
        p.scale = 0.125F;
        p.out = matrix(blocks[2 * set + 1], rows, kWidth);
        b.scratch.restart();
        cuda::vit_attention(b.context, p);
    });
    report.add("vit attention, " + std::to_string(tiles) + " tiles", seconds, bytes,
               4.0 * static_cast<double>(rows * kWidth * kTokens));
}

}  // namespace

int main(int argc, char** argv) {
    Bench b;
    const bool json = argc == 3 && std::string_view(argv[1]) == "--json";
    bench::Report report("softmax", bench::measure_ceilings(b.stream), json ? argv[2] : "");
    for (const std::int64_t rows : {4096, 32768})
        measure_softmax(b, report, "prefill n=" + std::to_string(rows), rows, 0);
    measure_softmax(b, report, "prefill n=4096 at 131072", 4096, 131072);
    for (const std::int64_t keys : {4096, 131072, 1048576})
        measure_softmax(b, report, "decode keys=" + std::to_string(keys), 1, keys - 1);
    measure_softmax(b, report, "8 rows at 131072", 8, 131072 - 8);
    measure_softmax(b, report, "32 rows at 131072", 32, 131072 - 32);
    for (const std::int64_t tiles : {1, 5, 37}) measure_vit(b, report, tiles);
}

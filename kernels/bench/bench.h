// Timing for the benchmarks of this folder: medians of warm runs, random data, buffers that
// rotate beyond the caches where the model would find them cold, a table and --json.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/tensor.h"

namespace longview::bench {

/// Median wall time of one call of fn. Warms up once, then measures until min_total_s have passed
/// and at least five samples are there; very short calls are timed in batches of some 20 us.
inline double median_seconds(const std::function<void()>& fn, double min_total_s = 0.3) {
    using Clock = std::chrono::steady_clock;
    const auto timed = [&](int calls) {
        const auto start = Clock::now();
        for (int i = 0; i < calls; ++i) fn();
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    fn();
    const double once = std::max(timed(1), 1e-9);
    const int batch = std::max(1, static_cast<int>(20e-6 / once));
    std::vector<double> samples;
    double total = 0.0;
    while (total < min_total_s || samples.size() < 5) {
        const double seconds = timed(batch);
        total += seconds;
        samples.push_back(seconds / batch);
    }
    const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
    std::nth_element(samples.begin(), middle, samples.end());
    return *middle;
}

/// Reproducible numbers in [-1, 1).
class Random {
  public:
    explicit Random(std::uint64_t seed = 1) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}
    float next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return static_cast<float>(static_cast<std::int32_t>(state_ >> 32)) * 0x1p-31F;
    }

  private:
    std::uint64_t state_;
};

/// `count` random values of a type in [-1, 1) (halves: in [1, 2) or (-2, -1] by bit patterns).
inline Buffer random_values(std::int64_t count, DType dtype, std::uint64_t seed = 1) {
    Buffer buffer = allocate_host(static_cast<std::size_t>(count) * size_of(dtype));
    Random random(seed);
    for (std::int64_t i = 0; i < count; ++i) {
        const float value = random.next();
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof(bits));
        if (dtype == DType::kF32) {
            buffer.as<float>()[i] = value;
        } else if (dtype == DType::kBF16) {
            buffer.as<std::uint16_t>()[i] = static_cast<std::uint16_t>(bits >> 16);
        } else {
            buffer.as<std::uint16_t>()[i] =
                static_cast<std::uint16_t>((bits >> 16 & 0x8000) | 0x3C00 | (bits >> 13 & 0x3FF));
        }
    }
    return buffer;
}

/// Calls that each use the next of several copies, so that no call finds its operands in a cache.
/// How many copies of `size_bytes` it takes to exceed the last-level caches of today's machines.
inline std::int64_t cold_copies(std::size_t size_bytes) {
    constexpr std::size_t kBeyondCaches = std::size_t{256} << 20;
    return static_cast<std::int64_t>(kBeyondCaches / std::max<std::size_t>(size_bytes, 1)) + 1;
}

/// Collects measurements; prints a table, or with --json one JSON object, when destroyed.
class Report {
  public:
    struct Row {
        std::string name;   // "linear"
        std::string shape;  // "m=1 k=256 n=768 bf16", key=value or words without spaces
        int threads = 1;
        double seconds = 0.0;
        double bytes = 0.0;  // moved at least; 0: not of interest
        double flops = 0.0;  // counted as multiplications plus additions; 0: not of interest
    };

    Report(int argc, char** argv) {
        for (int i = 1; i < argc; ++i) json_ |= std::strcmp(argv[i], "--json") == 0;
        std::ifstream info("/proc/cpuinfo");
        for (std::string line; std::getline(info, line);) {
            const std::size_t colon = line.find(": ");
            if (line.rfind("model name", 0) != 0 || colon == std::string::npos) continue;
            cpu_ = line.substr(colon + 2);
            break;
        }
        if (!json_) {
            std::printf("CPU %s, compiler %s\n", cpu_.c_str(), compiler());
            std::printf("%-18s %-36s %7s %12s %9s %9s\n", "operator", "shape", "threads", "us",
                        "GB/s", "GFLOP/s");
        }
    }
    Report(const Report&) = delete;
    Report& operator=(const Report&) = delete;

    void add(const Row& row) {
        rows_.push_back(row);
        if (json_) return;
        std::printf("%-18s %-36s %7d %12.2f", row.name.c_str(), row.shape.c_str(), row.threads,
                    row.seconds * 1e6);
        print_rate(row.bytes / row.seconds);
        print_rate(row.flops / row.seconds);
        std::printf("\n");
        std::fflush(stdout);
    }

    ~Report() {
        if (!json_) return;
        std::printf("{\"cpu\": \"%s\", \"compiler\": \"%s\", \"rows\": [", cpu_.c_str(),
                    compiler());
        const char* separator = "\n";
        for (const Row& row : rows_) {
            std::printf(
                "%s  {\"name\": \"%s\", \"shape\": \"%s\", \"threads\": %d, "
                "\"seconds\": %.9g, \"bytes\": %.9g, \"flops\": %.9g}",
                separator, row.name.c_str(), row.shape.c_str(), row.threads, row.seconds, row.bytes,
                row.flops);
            separator = ",\n";
        }
        std::printf("\n]}\n");
    }

  private:
    static const char* compiler() {
#if defined(__clang__)
        return "clang " __clang_version__;
#else
        return "gcc " __VERSION__;
#endif
    }
    static void print_rate(double per_second) {
        if (per_second > 0.0) {
            std::printf(" %9.2f", per_second * 1e-9);
        } else {
            std::printf(" %9s", "-");
        }
    }

    bool json_ = false;
    std::string cpu_ = "unknown";
    std::vector<Row> rows_;
};

}  // namespace longview::bench

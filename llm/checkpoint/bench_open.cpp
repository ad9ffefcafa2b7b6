// Times opening a model folder: checkpoint_open_bench FOLDER [REPEATS]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/checkpoint.h"

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void run(const char* folder, int repeats) {
    std::vector<double> opening, fingerprint;
    longview::llm::CheckpointSummary summary;
    for (int i = 0; i < repeats; ++i) {
        const auto start = Clock::now();
        const auto checkpoint = longview::llm::Checkpoint::open(folder);
        opening.push_back(milliseconds_since(start));
        const auto opened = Clock::now();
        checkpoint->fingerprint();
        fingerprint.push_back(milliseconds_since(opened));
        summary = checkpoint->summary();
    }
    const double first = opening.front();
    std::sort(opening.begin(), opening.end());
    std::sort(fingerprint.begin(), fingerprint.end());
    const std::size_t middle = opening.size() / 2;
    std::printf("%lld shards, %lld tensors, %.3f GB\n", static_cast<long long>(summary.shards),
                static_cast<long long>(summary.tensors), static_cast<double>(summary.bytes) / 1e9);
    std::printf("open         first %.1f ms, median %.1f ms, best %.1f ms\n", first,
                opening[middle], opening.front());
    std::printf("fingerprint  median %.1f ms, best %.1f ms\n", fingerprint[middle],
                fingerprint.front());
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fprintf(stderr, "usage: checkpoint_open_bench FOLDER [REPEATS]\n");
        return 2;
    }
    try {
        run(argv[1], argc == 3 ? std::clamp(std::atoi(argv[2]), 1, 1000) : 5);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
    return 0;
}

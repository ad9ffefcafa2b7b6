// What a GPU that fails looks like from outside: a kernel that writes where it must not ends in one
// clear error, every later call says the same at once, and nothing hangs. And two processes share a
// card.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/runtime/error.h"
#include "tests/gpu/gpu_test.h"

using namespace longview;
using namespace longview::gpu_test;

namespace {

using Clock = std::chrono::steady_clock;

__global__ void write_kernel(int* to) {
    *to = 1;
}

bool says_lost(const Error& error) {
    for (const auto& [key, value] : error.context())
        if (key == "lost" && value == "yes") return error.category() == Category::kDevice;
    return false;
}

/// Calls f, which must throw "lost" within a second.
template <typename F>
void expect_lost(const char* what, const F& f) {
    const Clock::time_point start = Clock::now();
    bool lost = false;
    try {
        f();
    } catch (const Error& error) {
        lost = says_lost(error);
        std::printf("        %s: %s\n", what, error.what());
    }
    expect(lost, std::string(what) + " does not say that the device is lost");
    expect(Clock::now() - start < std::chrono::seconds(1), std::string(what) + " takes long");
}

/// Runs in a process of its own, which cannot compute afterwards.
int lose_the_device() {
    const std::unique_ptr<kernels::Backend> backend = kernels::make_cuda_backend();
    const Buffer good = backend->allocate(1 << 20);
    backend->zero(good.data(), good.size_bytes());
    backend->synchronize();
    write_kernel<<<1, 1>>>(reinterpret_cast<int*>(std::uintptr_t{64}));
    expect_lost("waiting", [&] { backend->synchronize(); });
    expect_lost("computing", [&] {
        backend->zero(good.data(), good.size_bytes());
        backend->synchronize();
    });
    expect_lost("reading back", [&] {
        int value = 0;
        backend->copy_out(&value, good.data(), sizeof(value));
    });
    return 0;
}

/// A product many times over, every time with the same result.
int share_the_device() {
    const std::unique_ptr<kernels::Backend> backend = kernels::make_cuda_backend();
    constexpr std::int64_t kSide = 1024;
    Random random(7);
    const std::vector<std::uint16_t> values = to_bf16(random.normals_bf16(kSide * kSide));
    const kernels::Weight w = backend->place({values.data(), DType::kBF16, kSide, kSide});
    const Buffer out = backend->allocate(kSide * kSide * 2);
    const ConstMatrix x{w.view.data, DType::kBF16, kSide, kSide, kSide};
    std::vector<std::uint16_t> first;
    for (int i = 0; i < 200; ++i) {
        const kernels::LinearOutput outputs[] = {
            {.weight = w.view, .out = {out.data(), DType::kBF16, kSide, kSide, kSide}}};
        backend->norm_linear({.x = x, .outputs = outputs});
        std::vector<std::uint16_t> got(kSide * kSide);
        backend->copy_out(got.data(), out.data(), got.size() * 2);
        if (first.empty()) first = got;
        expect(got == first, "the same product gave other bits");
    }
    return 0;
}

/// Starts this program again with `role`; CUDA cannot be used on both sides of a fork.
pid_t start(const char* role) {
    const pid_t child = fork();
    if (child != 0) return child;
    execl("/proc/self/exe", "gpu_lost_test", role, static_cast<char*>(nullptr));
    _exit(127);
}
int status_of(pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string role = argc > 1 ? argv[1] : "";
    try {
        if (role == "--lose") return lose_the_device();
        if (role == "--share") return share_the_device();
    } catch (const std::exception& error) {
        std::printf("        %s\n", error.what());
        return 1;
    }
    return run_cases(argc, argv,
                     {{"an illegal access ends in 'lost', once and without a hang",
                       [](Device&) { expect(status_of(start("--lose")) == 0, "see above"); }},
                      {"two processes on one card", [](Device&) {
                           const pid_t one = start("--share");
                           const pid_t other = start("--share");
                           const int first = status_of(one);
                           expect(first == 0 && status_of(other) == 0, "see above");
                       }}});
}

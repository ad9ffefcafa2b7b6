// Fuzzes the reader of saved states. The first byte chooses whether checksums are made right, so
// that mutations reach what lies behind them.
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/runtime/thread_pool.h"
#include "llm/decoder/state_file.h"

using namespace longview;
using namespace longview::llm;

namespace {

constexpr StateLayout kLayout{.lightning_layers = 1,
                              .softmax_layers = 1,
                              .heads = 1,
                              .head_dim = 8,
                              .kv_heads = 1,
                              .page_tokens = 4};

/// Sets the checksums of the header, of the one block that so small a payload has, and of the
/// table, where the file is long enough to hold them.
void repair_checksums(std::vector<std::byte>& file) {
    if (file.size() < kStateHeaderBytes) return;
    constexpr std::size_t kCovered = kStateHeaderBytes - sizeof(std::uint64_t);
    const std::uint64_t digest = XXH3_64bits(file.data(), kCovered);
    std::memcpy(file.data() + kCovered, &digest, sizeof(digest));
    const std::size_t tail = 2 * sizeof(std::uint64_t);
    if (file.size() < kStateHeaderBytes + tail) return;
    const std::size_t end = file.size() - tail;
    const std::uint64_t block =
        XXH3_64bits(file.data() + kStateHeaderBytes, end - kStateHeaderBytes);
    const std::uint64_t total = XXH3_64bits_withSeed(&block, sizeof(block), digest);
    std::memcpy(file.data() + end, &block, sizeof(block));
    std::memcpy(file.data() + end + sizeof(block), &total, sizeof(total));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    std::vector<std::byte> file(size - 1);
    std::transform(data + 1, data + size, file.begin(),
                   [](std::uint8_t b) { return std::byte{b}; });
    if ((data[0] & 1) != 0) repair_checksums(file);

    static ThreadPool pool(1);
    static const std::unique_ptr<kernels::Backend> backend = kernels::make_cpu_backend(pool);
    const ReadAt read = [&](std::uint64_t offset, void* to, std::size_t n) {
        if (offset > file.size() || n > file.size() - offset)
            throw Error(Category::kInput, "the file ends too early");
        std::copy_n(file.begin() + static_cast<std::ptrdiff_t>(offset), n,
                    static_cast<std::byte*>(to));
    };
    try {
        const std::string fingerprint(32, 'a');
        read_state(read, file.size(), "fuzz.state", fingerprint, kLayout, *backend);
    } catch (const Error& error) {
        if (error.category() == Category::kBug) __builtin_trap();
    }
    return 0;
}

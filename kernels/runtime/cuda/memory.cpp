#include "kernels/runtime/cuda/memory.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/runtime/cuda/check.h"

namespace longview::kernels::cuda {

namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kFirstBlock = std::size_t{8} << 20;
constexpr std::size_t kFirstPinned = std::size_t{64} << 10;

std::size_t rounded(std::size_t size_bytes) {
    return (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::string megabytes(std::uint64_t bytes) {
    return std::to_string((bytes + 999'999) / 1'000'000) + " MB";
}

}  // namespace

DevicePool::DevicePool(int device, const Stream& stream, std::uint64_t limit_bytes)
    : stream_(stream), limit_(limit_bytes) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    check(cudaMemPoolCreate(&pool_, &properties), "creating a memory pool");
    std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep),
          "creating a memory pool");
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    total_ = total;
}

DevicePool::~DevicePool() {
    if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
}

std::uint64_t DevicePool::free_bytes() const {
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    std::uint64_t reserved = 0;
    check(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved),
          "asking for free memory");
    const std::uint64_t possible = free + reserved - std::min(reserved, *used_);
    return limit_ == 0 ? possible : std::min(possible, limit_ - std::min(limit_, *used_));
}

Buffer DevicePool::allocate(std::size_t size_bytes) {
    if (size_bytes == 0) return {};
    const std::size_t size = rounded(size_bytes);
    void* data = nullptr;
    cudaError_t status = cudaErrorMemoryAllocation;
    if (limit_ == 0 || *used_ + size <= limit_)
        status = cudaMallocFromPoolAsync(&data, size, pool_, stream_.get());
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        const std::uint64_t free = free_bytes();
        throw Error(Category::kMemory,
                    "the GPU has no room for " + megabytes(size) + " more, " + megabytes(free) +
                        " are free. Close other programs that use it, ask about less text, or use "
                        "--device cpu",
                    {{"needed", std::to_string(size)}, {"free", std::to_string(free)}});
    }
    check(status, "allocating memory");
    *used_ += size;
    return {data, size_bytes, [stream = stream_.get(), used = used_, size](void* p) {
                *used -= size;
                cudaFreeAsync(p, stream);  // fails after a lost device, which is reported elsewhere
            }};
}

Buffer allocate_pinned(std::size_t size_bytes) {
    if (size_bytes == 0) return {};
    void* data = nullptr;
    check(cudaMallocHost(&data, size_bytes), "allocating page-locked memory");
    return {data, size_bytes, [](void* p) { cudaFreeHost(p); }};
}

void StreamScratch::restart_arena(Arena& arena, bool pinned) {
    if (arena.blocks.size() > 1 && !locked_) {
        // One block that holds what the last operator took in several.
        const std::size_t size = arena.total + arena.total / 4;
        arena.blocks.clear();
        arena.blocks.push_back(pinned ? allocate_pinned(size) : pool_.allocate(size));
        ++generation_;
    }
    arena.used = 0;
    arena.total = 0;
}

void StreamScratch::restart() {
    restart_arena(device_, false);
    // Pinned memory is read by the host after waiting, so it can be used again at once.
    restart_arena(pinned_, true);
}

void* StreamScratch::take_from(Arena& arena, std::size_t size_bytes, bool pinned) {
    const std::size_t size = std::max(rounded(size_bytes), kAlignment);
    if (arena.blocks.empty() || arena.used + size > arena.blocks.back().size_bytes()) {
        LONGVIEW_CHECK(!locked_, "operators of a recorded step find their scratch in place");
        const std::size_t block = std::max(size, pinned ? kFirstPinned : kFirstBlock);
        arena.blocks.push_back(pinned ? allocate_pinned(block) : pool_.allocate(block));
        arena.used = 0;
    }
    void* const at = arena.blocks.back().as<std::byte>() + arena.used;
    arena.used += size;
    arena.total += size;
    return at;
}

void* StreamScratch::take(std::size_t size_bytes) {
    return take_from(device_, size_bytes, false);
}
void* StreamScratch::take_pinned(std::size_t size_bytes) {
    return take_from(pinned_, size_bytes, true);
}

}  // namespace longview::kernels::cuda

// Device memory in the order of one stream, with an optional limit, and pinned host memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/cuda/handles.h"
#include "kernels/runtime/cuda/scratch.h"

namespace longview::kernels::cuda {

/// Memory that the driver keeps for this process once it was taken, so that taking and giving back
/// costs microseconds and never waits for the device. Blocks are freed in the order of the stream.
class DevicePool {
  public:
    /// limit_bytes 0: as much as the card has. The stream must outlive the pool and every buffer.
    DevicePool(int device, const Stream& stream, std::uint64_t limit_bytes);
    ~DevicePool();
    DevicePool(const DevicePool&) = delete;
    DevicePool& operator=(const DevicePool&) = delete;

    /// 256-byte aligned, contents undefined; size 0 gives an empty buffer. Errors: kMemory with
    /// {"needed", bytes} and {"free", bytes}; the pool is then as before.
    Buffer allocate(std::size_t size_bytes);
    std::uint64_t used_bytes() const { return *used_; }
    std::uint64_t total_bytes() const { return total_; }
    /// What allocate() can still give, kept blocks of the pool included.
    std::uint64_t free_bytes() const;

  private:
    const Stream& stream_;
    cudaMemPool_t pool_ = nullptr;
    std::uint64_t limit_ = 0;
    std::uint64_t total_ = 0;
    std::shared_ptr<std::uint64_t> used_ = std::make_shared<std::uint64_t>(0);
};

/// Page-locked host memory, which the device copies from and to at full speed.
Buffer allocate_pinned(std::size_t size_bytes);

/// Scratch of the operators of one stream. Grows to what the largest operator took; restart()
/// begins the next operator.
class StreamScratch final : public Scratch {
  public:
    explicit StreamScratch(DevicePool& pool) : pool_(pool) {}

    void restart();
    void* take(std::size_t size_bytes) override;
    void* take_pinned(std::size_t size_bytes) override;
    /// Changes whenever memory handed out earlier may have been given back: a recorded graph is
    /// then out of date.
    std::uint64_t generation() const { return generation_; }
    /// While locked, growing throws kBug: nothing may be allocated while a graph is recorded.
    void lock(bool locked) { locked_ = locked; }

  private:
    struct Arena {
        std::vector<Buffer> blocks;
        std::size_t used = 0;   // of the last block
        std::size_t total = 0;  // taken since restart()
    };
    void* take_from(Arena& arena, std::size_t size_bytes, bool pinned);
    void restart_arena(Arena& arena, bool pinned);

    DevicePool& pool_;
    Arena device_, pinned_;
    std::uint64_t generation_ = 0;
    bool locked_ = false;
};

}  // namespace longview::kernels::cuda

// Where the launchers of one operator take working memory from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longview::kernels::cuda {

/// Scratch memory for one operator. take() is valid until the operator's launches are queued; the
/// next operator reuses the same memory, which the order of the stream makes safe.
class Scratch {
  public:
    virtual ~Scratch() = default;
    /// 256-byte aligned device memory with undefined contents. Several calls in one operator give
    /// disjoint blocks. Errors: kMemory.
    virtual void* take(std::size_t size_bytes) = 0;
    template <typename T>
    T* take_array(std::int64_t count) {
        return static_cast<T*>(take(static_cast<std::size_t>(count) * sizeof(T)));
    }
    /// Pinned host memory under the same rules, for results a launcher must look at.
    virtual void* take_pinned(std::size_t size_bytes) = 0;
};

}  // namespace longview::kernels::cuda

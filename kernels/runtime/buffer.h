// Owned memory. Only a backend makes device buffers; host buffers can be made anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "kernels/runtime/tensor.h"

namespace longview {

/// Move-only owner of a block of host or device memory, freed by the deleter it came with.
class Buffer {
  public:
    using Deleter = std::function<void(void*)>;

    Buffer() = default;
    Buffer(void* data, std::size_t size_bytes, Deleter deleter)
        : data_(data), size_bytes_(size_bytes), deleter_(std::move(deleter)) {}
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        Buffer(std::move(other)).swap(*this);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (data_ != nullptr && deleter_) deleter_(data_);
    }

    void* data() const noexcept { return data_; }
    std::size_t size_bytes() const noexcept { return size_bytes_; }
    template <typename T>
    T* as() const noexcept {
        return static_cast<T*>(data_);
    }
    explicit operator bool() const noexcept { return data_ != nullptr; }

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_bytes_, other.size_bytes_);
        deleter_.swap(other.deleter_);
    }

  private:
    void* data_ = nullptr;
    std::size_t size_bytes_ = 0;
    Deleter deleter_;
};

/// Host memory aligned to 64 bytes. size_bytes 0 gives an empty buffer.
/// Errors: Category::kMemory naming the size when the system refuses.
Buffer allocate_host(std::size_t size_bytes);

}  // namespace longview

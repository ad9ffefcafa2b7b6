#include "kernels/runtime/buffer.h"

#include <cstdlib>
#include <string>

namespace longview {

Buffer allocate_host(std::size_t size_bytes) {
    if (size_bytes == 0) return {};
    constexpr std::size_t kAlignment = 64;  // a cache line, and the widest SIMD register
    void* data = nullptr;
    if (size_bytes <= SIZE_MAX - kAlignment) {
        const std::size_t rounded = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
        data = std::aligned_alloc(kAlignment, rounded);
    }
    if (data == nullptr) {
        throw Error(Category::kMemory,
                    "not enough memory: " + std::to_string(size_bytes) +
                        " bytes could not be allocated; close other programs or use a shorter text",
                    {{"bytes", std::to_string(size_bytes)}});
    }
    return Buffer(data, size_bytes, [](void* p) { std::free(p); });
}

}  // namespace longview

// Any bytes as a safetensors file: refused with an Error, or in bounds in every respect.
#include <cstdlib>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span file(reinterpret_cast<const std::byte*>(data), size);
    try {
        std::uint64_t end = 0;
        for (const auto& tensor : longview::llm::read_safetensors_header(file, "f")) {
            std::uint64_t bytes = longview::size_of(tensor.dtype);
            for (int i = 0; i < tensor.rank; ++i) {
                bytes *= static_cast<std::uint64_t>(tensor.shape[static_cast<std::size_t>(i)]);
            }
            const bool is_sound = bytes == tensor.size_bytes && tensor.offset <= size &&
                                  tensor.size_bytes <= size - tensor.offset &&
                                  tensor.offset >= end && !tensor.name.empty();
            if (!is_sound) std::abort();
            end = tensor.offset + tensor.size_bytes;
        }
    } catch (const longview::Error& error) {
        if (error.category() == longview::Category::kBug) std::abort();
    }
    return 0;
}

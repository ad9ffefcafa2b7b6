// Decodes arbitrary bytes as a picture of at most 4 megapixels. Anything but a picture or an Error
// is a finding. Mutated PNG files get right checksums, so that the fuzzer reaches what is behind.
#include <zlib.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "kernels/runtime/error.h"
#include "vision/image/image.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

void repair_png_checksums(std::uint8_t* data, std::size_t size) {
    constexpr std::size_t kSignature = 8, kOverhead = 12;
    if (size < kSignature || std::memcmp(data, "\x89PNG", 4) != 0) return;
    for (std::size_t at = kSignature; size - at >= kOverhead;) {
        const std::size_t length = (std::size_t{data[at]} << 24) |
                                   (std::size_t{data[at + 1]} << 16) |
                                   (std::size_t{data[at + 2]} << 8) | data[at + 3];
        if (length > size - at - kOverhead) return;
        const auto sum = crc32_z(0, data + at + 4, length + 4);
        for (std::size_t i = 0; i < 4; ++i)
            data[at + 8 + length + i] = static_cast<std::uint8_t>(sum >> (24 - 8 * i));
        at += kOverhead + length;
    }
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned int seed) {
    const std::size_t mutated = LLVMFuzzerMutate(data, size, max_size);
    // Now and then a wrong checksum stays.
    if (seed % 16 != 0) repair_png_checksums(data, mutated);
    return mutated;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace longview;
    const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
    vision::DecodeOptions options;
    options.max_pixels = 4'000'000;
    try {
        const vision::Image image = vision::decode_image(file, "fuzz", options);
        const std::size_t expected =
            static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height) * 3;
        if (image.rgb.size() != expected) std::abort();
    } catch (const Error& error) {
        if (error.category() == Category::kBug) std::abort();
    }
    return 0;
}

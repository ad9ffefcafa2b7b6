// Decodes arbitrary bytes as a picture of at most 4 megapixels. Anything but a picture or an Error
// is a finding.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "kernels/runtime/error.h"
#include "vision/image/image.h"

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

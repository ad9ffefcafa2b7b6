#include "app/core/png.h"

#include "kernels/runtime/error.h"

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb/stb_image_write.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

namespace longview::app {

std::string encode_png(const vision::Image& image) {
    std::string png;
    const auto append = [](void* context, void* data, int size) {
        static_cast<std::string*>(context)->append(static_cast<const char*>(data),
                                                   static_cast<std::size_t>(size));
    };
    const int written = stbi_write_png_to_func(append, &png, image.width, image.height, 3,
                                               image.rgb.data(), image.width * 3);
    if (written == 0) {
        throw Error(Category::kMemory, "there is not enough memory to store a picture of " +
                                           std::to_string(image.width) + " x " +
                                           std::to_string(image.height) + " pixels.");
    }
    return png;
}

}  // namespace longview::app

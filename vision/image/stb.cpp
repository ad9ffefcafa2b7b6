// Debian's stb_image 2.27 has known defects on hostile files. What stands between them and this
// program:
//  - tables and sizes it does not check itself are checked by png.cpp, jpeg.cpp and bmp.cpp before
//    (Huffman tables of more than 256 symbols, short palettes, scans without data, ...);
//  - its memory is zeroed, so tables and pixels that a damaged file never sets are not left over
//    from elsewhere, and bounded, so a compressed bomb ends with an error;
//  - this file is compiled with -fwrapv and without the check of shift widths: coefficients of
//    damaged JPEG data overflow, and bit counts run below zero at the end of the data. Both only
//    give wrong pixels: values are clamped and table indices masked before use.
#include "vision/image/stb.h"

#include <cstdlib>
#include <cstring>
#include <limits>

namespace longview::vision {
namespace {

thread_local std::size_t stb_bytes_left = 0;
thread_local bool stb_refused = false;    // by the budget
thread_local bool stb_exhausted = false;  // by the system

// Each block begins with its size, padded so that the rest stays aligned for SIMD.
constexpr std::size_t kBlockHeader = 16;

std::size_t block_size(const void* p) {
    std::size_t size = 0;
    std::memcpy(&size, static_cast<const std::byte*>(p) - kBlockHeader, sizeof size);
    return size;
}

void stb_free(void* p) {
    if (p == nullptr) return;
    stb_bytes_left += block_size(p);
    std::free(static_cast<std::byte*>(p) - kBlockHeader);
}

void* stb_malloc(std::size_t size) {
    if (size > stb_bytes_left) {
        stb_refused = true;
        return nullptr;
    }
    auto* const block = static_cast<std::byte*>(std::calloc(1, size + kBlockHeader));
    if (block == nullptr) {
        stb_exhausted = true;
        return nullptr;
    }
    std::memcpy(block, &size, sizeof size);
    stb_bytes_left -= size;
    return block + kBlockHeader;
}

void* stb_realloc(void* p, std::size_t old_size, std::size_t size) {
    void* const q = stb_malloc(size);
    if (q == nullptr || p == nullptr) return q;
    std::memcpy(q, p, old_size < size ? old_size : size);
    stb_free(p);
    return q;
}

}  // namespace
}  // namespace longview::vision

#define STBI_MALLOC(size) longview::vision::stb_malloc(size)
#define STBI_REALLOC_SIZED(p, old_size, size) longview::vision::stb_realloc(p, old_size, size)
#define STBI_FREE(p) longview::vision::stb_free(p)
#define STBI_ASSERT(condition) ((void)0)  // a damaged file must not end the program
#define STBI_MAX_DIMENSIONS 32768
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Weverything"
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include <stb/stb_image.h>
#if defined(__clang__)
#pragma clang diagnostic pop
#else
#pragma GCC diagnostic pop
#endif

namespace longview::vision {

Pixels decode_with_stb(const std::vector<std::uint8_t>& clean, int channels,
                       std::size_t budget_bytes, const FileView& file) {
    LONGVIEW_CHECK(clean.size() <= std::size_t{std::numeric_limits<int>::max()},
                   "picture files are limited to 512 MiB");
    stb_bytes_left = budget_bytes;
    stb_refused = stb_exhausted = false;
    Pixels out;
    out.channels = channels;
    int stored_channels = 0;
    stbi_uc* const data =
        stbi_load_from_memory(clean.data(), static_cast<int>(clean.size()), &out.width, &out.height,
                              &stored_channels, channels);
    if (data == nullptr) {
        if (stb_exhausted) {
            throw Error(Category::kMemory, "not enough memory to open " + std::string(file.name()) +
                                               "; close other programs or make it smaller");
        }
        if (stb_refused) file.damaged("it unpacks to more data than its size allows");
        file.damaged(stbi_failure_reason());
    }
    out.data = Buffer(data,
                      static_cast<std::size_t>(out.width) * static_cast<std::size_t>(out.height) *
                          static_cast<std::size_t>(channels),
                      stb_free);
    return out;
}

}  // namespace longview::vision

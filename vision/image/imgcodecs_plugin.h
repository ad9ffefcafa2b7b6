// The border of the plugin that decodes WebP and TIFF with OpenCV's imgcodecs. A plugin, because
// that library brings some 140 others along, which would cost every start of the program 64 ms.
// Plain C, so that both sides agree whatever they were built with.
#pragma once

#include <cstddef>

extern "C" {

/// Called once when the size is known; returns memory of width * height * channels bytes or null.
using LongviewAllocatePixels = unsigned char* (*)(void* context, int width, int height,
                                                  int channels);

/// Decodes the first picture of a file: 8 bits (of 16 the upper 8), RGB or RGBA as stored, no EXIF
/// turn. Returns 0, or 1 with a zero-terminated reason in `error`. Never throws.
using LongviewDecode = int (*)(const unsigned char* file, std::size_t size,
                               LongviewAllocatePixels allocate, void* context, char* error,
                               std::size_t error_size);
}

inline constexpr char kLongviewDecodeSymbol[] = "longview_imgcodecs_decode_v1";

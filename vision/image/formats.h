// One reader a picture format: a header function that looks only at what it must, and a decoder
// that is called after the header passed the limits. Private to vision/image.
#pragma once

#include <cstddef>

#include "kernels/runtime/buffer.h"
#include "vision/image/file_view.h"
#include "vision/image/image.h"

namespace longview::vision {

/// Decoded pixels as stored, before the EXIF turn.
struct Pixels {
    int width = 0;
    int height = 0;
    int channels = 3;            // 3: RGB, 4: RGBA
    bool premultiplied = false;  // colours are already multiplied with alpha
    Buffer data;                 // [height, width, channels]
};

// Errors of every function: kInput (damaged, incomplete), kUnsupported (a variant nobody reads).
ImageHeader png_header(const FileView& file);
ImageHeader jpeg_header(const FileView& file);
ImageHeader bmp_header(const FileView& file);
ImageHeader gif_header(const FileView& file);
ImageHeader webp_header(const FileView& file);
ImageHeader tiff_header(const FileView& file);

Pixels decode_png(const FileView& file, const ImageHeader& header);
Pixels decode_jpeg(const FileView& file, const ImageHeader& header);
Pixels decode_bmp(const FileView& file, const ImageHeader& header);
Pixels decode_gif(const FileView& file, const ImageHeader& header);
Pixels decode_webp(const FileView& file, const ImageHeader& header);
Pixels decode_tiff(const FileView& file, const ImageHeader& header);

}  // namespace longview::vision

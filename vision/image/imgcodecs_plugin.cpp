#include "vision/image/imgcodecs_plugin.h"

#include <cstdint>
#include <cstdio>
#include <exception>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

namespace {

/// The upper 8 bits of each sample, as every other format of the program is treated.
cv::Mat to_8_bits(const cv::Mat& image) {
    if (image.depth() == CV_8U) return image;
    if (image.depth() != CV_16U)
        throw std::runtime_error("its samples are not whole numbers of 8 or 16 bits");
    cv::Mat out(image.rows, image.cols, CV_8UC(image.channels()));
    const int samples = image.cols * image.channels();
    for (int y = 0; y < image.rows; ++y) {
        const auto* const from = image.ptr<std::uint16_t>(y);
        auto* const to = out.ptr<std::uint8_t>(y);
        for (int i = 0; i < samples; ++i) to[i] = static_cast<std::uint8_t>(from[i] >> 8);
    }
    return out;
}

int conversion(int channels) {
    switch (channels) {
        case 1:
            return cv::COLOR_GRAY2RGB;
        case 3:
            return cv::COLOR_BGR2RGB;
        case 4:
            return cv::COLOR_BGRA2RGBA;
        default:
            throw std::runtime_error("it has an unusual number of colour channels");
    }
}

void decode(const unsigned char* file, std::size_t size, LongviewAllocatePixels allocate,
            void* context) {
    // A header over the caller's bytes; imdecode only reads.
    const cv::Mat bytes(1, static_cast<int>(size), CV_8U, const_cast<unsigned char*>(file));
    const cv::Mat image = to_8_bits(cv::imdecode(bytes, cv::IMREAD_UNCHANGED));
    if (image.empty()) throw std::runtime_error("its pixels cannot be decoded");
    const int channels = image.channels() == 4 ? 4 : 3;
    unsigned char* const pixels = allocate(context, image.cols, image.rows, channels);
    if (pixels == nullptr) throw std::runtime_error("its size differs from its header's");
    cv::Mat out(image.rows, image.cols, CV_8UC(channels), pixels);
    cv::cvtColor(image, out, conversion(image.channels()));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int longview_imgcodecs_decode_v1(
    const unsigned char* file, std::size_t size, LongviewAllocatePixels allocate, void* context,
    char* error, std::size_t error_size) {
    try {
        decode(file, size, allocate, context);
        return 0;
    } catch (const std::exception& e) {
        std::snprintf(error, error_size, "%s", e.what());
    } catch (...) {
        std::snprintf(error, error_size, "unknown failure");
    }
    return 1;
}

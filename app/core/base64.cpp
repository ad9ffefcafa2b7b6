#include "app/core/base64.h"

#include <cstdint>

#include "kernels/runtime/error.h"

namespace longview::app {

namespace {

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

[[noreturn]] void refuse() {
    throw Error(Category::kInput, "a picture's base64 text is damaged.");
}

std::uint32_t value_of(char c) {
    const std::size_t index = kAlphabet.find(c);
    if (index == std::string_view::npos) refuse();
    return static_cast<std::uint32_t>(index);
}

}  // namespace

std::string base64_encode(std::string_view bytes) {
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t group = 0;
        for (std::size_t k = 0; k < 3; ++k) {
            group = group << 8U |
                    (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
        }
        for (std::size_t k = 0; k < 4; ++k) {
            const bool beyond = i + k > bytes.size();
            text += beyond ? '=' : kAlphabet[group >> (18U - 6U * k) & 63U];
        }
    }
    return text;
}

std::string base64_decode(std::string_view text) {
    if (text.size() % 4 != 0) refuse();
    std::string bytes;
    bytes.reserve(text.size() / 4 * 3);
    for (std::size_t i = 0; i < text.size(); i += 4) {
        const bool last = i + 4 == text.size();
        std::size_t used = 4;
        while (last && used > 2 && text[i + used - 1] == '=') --used;
        std::uint32_t group = 0;
        for (std::size_t k = 0; k < 4; ++k) {
            group = group << 6U | (k < used ? value_of(text[i + k]) : 0U);
        }
        if ((used == 2 && (group & 0xFFFFU) != 0) || (used == 3 && (group & 0xFFU) != 0)) refuse();
        for (std::size_t k = 0; k + 1 < used; ++k) {
            bytes += static_cast<char>(group >> (16U - 8U * k) & 0xFFU);
        }
    }
    return bytes;
}

}  // namespace longview::app

// A picture file in memory, read with bounds. Private to vision/image; used by the format readers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/runtime/error.h"

namespace longview::vision {

/// Reads past the end throw Category::kInput saying that the file is incomplete.
class FileView {
  public:
    /// `format` is how errors call the file ("PNG").
    FileView(std::span<const std::byte> bytes, std::string_view name, std::string_view format)
        : bytes_(bytes), name_(name), format_(format) {}

    std::size_t size() const { return bytes_.size(); }
    const std::uint8_t* data() const {
        return reinterpret_cast<const std::uint8_t*>(bytes_.data());
    }
    std::string_view name() const { return name_; }
    std::string_view format() const { return format_; }

    bool has(std::size_t at, std::size_t count) const {
        return at <= bytes_.size() && count <= bytes_.size() - at;
    }
    bool starts_with(std::size_t at, std::string_view text) const {
        return has(at, text.size()) && as_text(at, text.size()) == text;
    }
    /// Throws unless `count` bytes follow `at`.
    void need(std::size_t at, std::size_t count) const {
        if (!has(at, count)) incomplete();
    }
    std::span<const std::byte> part(std::size_t at, std::size_t count) const {
        need(at, count);
        return bytes_.subspan(at, count);
    }

    std::uint32_t u8(std::size_t at) const { return need(at, 1), data()[at]; }
    std::uint32_t be16(std::size_t at) const { return (u8(at) << 8) | u8(at + 1); }
    std::uint32_t be32(std::size_t at) const { return (be16(at) << 16) | be16(at + 2); }
    std::uint32_t le16(std::size_t at) const { return u8(at) | (u8(at + 1) << 8); }
    std::uint32_t le24(std::size_t at) const { return le16(at) | (u8(at + 2) << 16); }
    std::uint32_t le32(std::size_t at) const { return le16(at) | (le16(at + 2) << 16); }

    [[noreturn]] void incomplete() const {
        throw Error(Category::kInput, std::string(name_) + " is an incomplete " +
                                          std::string(format_) + " picture: it ends after " +
                                          std::to_string(bytes_.size()) +
                                          " bytes; copy or download it again");
    }
    [[noreturn]] void damaged(const std::string& why) const {
        throw Error(Category::kInput, std::string(name_) + " is a damaged " + std::string(format_) +
                                          " picture: " + why + "; copy or download it again");
    }
    /// `what` completes "uses ...".
    [[noreturn]] void unsupported(const std::string& what) const {
        throw Error(Category::kUnsupported, std::string(name_) + " is a " + std::string(format_) +
                                                " picture that uses " + what +
                                                ", which cannot be read; save it as PNG");
    }

  private:
    std::string_view as_text(std::size_t at, std::size_t count) const {
        return {reinterpret_cast<const char*>(bytes_.data()) + at, count};
    }

    std::span<const std::byte> bytes_;
    std::string_view name_;
    std::string_view format_;
};

}  // namespace longview::vision

// Regular files of the user: read whole with a limit, or mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace longview::llm {

/// The whole of a regular file (symbolic links are followed; pipes, devices and folders refused).
/// Errors: kNotFound, kInput (not a regular file, longer than max_bytes), kIo.
std::string read_whole_file(const std::filesystem::path& path, std::uint64_t max_bytes);

/// A regular file mapped for reading. The mapping outlives renames and removal of the file.
///
/// When another program cuts the file short, or the disk fails, a read of the mapping would end
/// the process by SIGBUS. A handler installed with the first mapping puts zeros in place of the
/// lost part instead, in whichever thread the read happens, and damaged() tells so from then on:
/// whoever computed with the data asks check_unchanged() before trusting the result.
class MappedFile {
  public:
    /// An empty file gives empty bytes(). Starts without read-ahead.
    /// Errors: kNotFound, kInput (not a regular file), kIo, kMemory (no address space).
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&&) = delete;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::span<const std::byte> bytes() const { return {data_, size_}; }
    /// Whether the system reads ahead of an access (up to megabytes, as the disk is set up): right
    /// for whole tensors, wasteful for headers and samples. Any thread.
    void set_read_ahead(bool on) const;
    /// Whether zeros took the place of bytes that could not be read.
    bool damaged() const;
    /// Throws kIo naming the file when size, time or identity differ from when it was opened, or
    /// when part of it could not be read.
    void check_unchanged() const;

    /// What tells one state of a file from another.
    struct Identity {
        std::uint64_t device = 0;
        std::uint64_t inode = 0;
        std::int64_t modified_s = 0;
        std::int64_t modified_ns = 0;
        std::uint64_t size = 0;
        bool operator==(const Identity&) const = default;
    };

  private:
    std::filesystem::path path_;
    Identity identity_;
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
    int guard_slot_ = -1;
};

}  // namespace longview::llm

// Files as this program reads and writes them: regular files only, every error with path and
// cause, and writes that leave either the old file or the new one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace longview {

/// A regular file open for reading. Errors: kNotFound, kInput (not a regular file), kIo.
class FileReader {
  public:
    explicit FileReader(std::filesystem::path path);
    ~FileReader();
    FileReader(const FileReader&) = delete;
    FileReader& operator=(const FileReader&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::uint64_t size_bytes() const { return size_; }
    /// Reads exactly size bytes at offset. Errors: kInput when the file ends before, kIo.
    void read(std::uint64_t offset, void* to, std::size_t size) const;

  private:
    std::filesystem::path path_;
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
};

/// Writes a temporary file beside the target; commit() puts it in the target's place after every
/// byte is on the disk. Without commit() nothing is left behind. Errors: kIo with the cause.
class AtomicFile {
  public:
    /// expected_bytes > 0: the space is reserved first, so that a full disk is told before work.
    explicit AtomicFile(std::filesystem::path target, std::uint64_t expected_bytes = 0);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* data, std::size_t size);
    void commit();

  private:
    [[noreturn]] void fail(const char* what, int error) const;

    std::filesystem::path target_;
    std::string temporary_;
    int descriptor_ = -1;
};

}  // namespace longview

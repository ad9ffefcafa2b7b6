#include "kernels/runtime/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "kernels/runtime/error.h"

namespace longview {
namespace {

std::string cause(int error) {
    return std::generic_category().message(error);
}

}  // namespace

FileReader::FileReader(std::filesystem::path path) : path_(std::move(path)) {
    // O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) {
        const int error = errno;
        throw Error(error == ENOENT ? Category::kNotFound : Category::kIo,
                    path_.string() + " cannot be opened: " + cause(error),
                    {{"path", path_.string()}});
    }
    struct stat info {};
    const bool known = ::fstat(descriptor_, &info) == 0;
    if (!known || !S_ISREG(info.st_mode)) {
        ::close(descriptor_);
        throw Error(Category::kInput, path_.string() + " is not a regular file",
                    {{"path", path_.string()}});
    }
    size_ = static_cast<std::uint64_t>(info.st_size);
}

FileReader::~FileReader() {
    ::close(descriptor_);
}

void FileReader::read(std::uint64_t offset, void* to, std::size_t size) const {
    auto* out = static_cast<std::byte*>(to);
    while (size > 0) {
        const ssize_t got = ::pread(descriptor_, out, size, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            throw Error(Category::kIo, path_.string() + " cannot be read: " + cause(errno),
                        {{"path", path_.string()}, {"offset", std::to_string(offset)}});
        if (got == 0)
            throw Error(Category::kInput,
                        path_.string() + " ends at byte " + std::to_string(offset) + ", where " +
                            std::to_string(size) + " more were expected",
                        {{"path", path_.string()}});
        out += got;
        offset += static_cast<std::uint64_t>(got);
        size -= static_cast<std::size_t>(got);
    }
}

AtomicFile::AtomicFile(std::filesystem::path target, std::uint64_t expected_bytes)
    : target_(std::move(target)) {
    const std::filesystem::path folder =
        target_.has_parent_path() ? target_.parent_path() : std::filesystem::path(".");
    temporary_ = (folder / ("." + target_.filename().string() + ".XXXXXX")).string();
    descriptor_ = ::mkostemp(temporary_.data(), O_CLOEXEC);
    if (descriptor_ < 0) {
        temporary_.clear();
        fail("cannot be written", errno);
    }
    if (expected_bytes > 0) {
        const int error = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(expected_bytes));
        // File systems without it report EOPNOTSUPP or EINVAL; writing then finds out.
        if (error == ENOSPC || error == EFBIG || error == EDQUOT) {
            ::close(std::exchange(descriptor_, -1));
            ::unlink(temporary_.c_str());
            throw Error(Category::kIo,
                        "not enough space on the disk for " + target_.string() + ": " +
                            std::to_string(expected_bytes) + " bytes are needed",
                        {{"path", target_.string()}, {"bytes", std::to_string(expected_bytes)}});
        }
    }
}

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* what, int error) const {
    throw Error(Category::kIo,
                target_.string() + " " + what + ": " + cause(error) +
                    ". What was there before is unchanged",
                {{"path", target_.string()}});
}

void AtomicFile::write(const void* data, std::size_t size) {
    const auto* from = static_cast<const std::byte*>(data);
    while (size > 0) {
        const ssize_t put = ::write(descriptor_, from, size);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) fail("cannot be written", errno);
        from += put;
        size -= static_cast<std::size_t>(put);
    }
}

void AtomicFile::commit() {
    // A failed sync must not be repeated: the kernel may have dropped the pages already.
    if (::fdatasync(descriptor_) != 0) fail("cannot be written to the disk", errno);
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot be written", errno);
    ::chmod(temporary_.c_str(), 0600);
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("cannot be replaced", errno);
    temporary_.clear();
    const std::filesystem::path folder =
        target_.has_parent_path() ? target_.parent_path() : std::filesystem::path(".");
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) fail("was written, but its folder cannot be synchronised", errno);
    const int synced = ::fsync(directory);
    const int error = errno;
    ::close(directory);
    if (synced != 0 && error != EINVAL) fail("was written, but may not survive a power cut", error);
}

}  // namespace longview

#include "app/core/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "kernels/runtime/error.h"

namespace longview::app {

namespace fs = std::filesystem;

namespace {

class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_(fd) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const { return fd_; }
    int close_now() {
        const int result = ::close(fd_);
        fd_ = -1;
        return result;
    }

  private:
    int fd_;
};

[[noreturn]] void fail(const std::string& what, const fs::path& path, int error) {
    const Category category =
        error == ENOENT || error == ENOTDIR ? Category::kNotFound : Category::kIo;
    throw Error(category,
                what + " " + path.string() + ": " + std::generic_category().message(error) + ".");
}

void write_all(int fd, std::string_view bytes, const fs::path& path) {
    while (!bytes.empty()) {
        const ssize_t written = ::write(fd, bytes.data(), bytes.size());
        if (written < 0) {
            if (errno == EINTR) continue;
            fail("cannot write", path, errno);
        }
        bytes.remove_prefix(static_cast<std::size_t>(written));
    }
}

}  // namespace

std::string read_file(const fs::path& path, std::uint64_t max_bytes) {
    // Non-blocking, so that opening a pipe returns and can be refused.
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.get() < 0) fail("cannot open", path, errno);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) fail("cannot read", path, errno);
    if (!S_ISREG(status.st_mode)) {
        throw Error(Category::kInput, path.string() + " is not a regular file.");
    }
    const auto too_large = [&](std::uint64_t size) {
        return Error(Category::kInput, path.string() + " is larger (" + human_bytes(size) +
                                           ") than the limit of " + human_bytes(max_bytes) + ".");
    };
    if (static_cast<std::uint64_t>(status.st_size) > max_bytes) {
        throw too_large(static_cast<std::uint64_t>(status.st_size));
    }
    // Files in /proc say size 0, others may grow while they are read: read to the end, not to a
    // size.
    std::string bytes;
    std::size_t used = 0;
    for (;;) {
        if (used == bytes.size())
            bytes.resize(used + static_cast<std::size_t>(status.st_size) / 4 + 65536);
        const ssize_t got = ::read(file.get(), bytes.data() + used, bytes.size() - used);
        if (got < 0) {
            if (errno == EINTR) continue;
            fail("cannot read", path, errno);
        }
        if (got == 0) break;
        used += static_cast<std::size_t>(got);
        if (used > max_bytes) throw too_large(used);
    }
    bytes.resize(used);
    return bytes;
}

void write_file_atomically(const fs::path& path, std::string_view bytes) {
    const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    std::string temporary = path.string() + ".XXXXXX";
    Descriptor file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (file.get() < 0) fail("cannot write", path, errno);
    try {
        write_all(file.get(), bytes, path);
        if (::fdatasync(file.get()) != 0) fail("cannot write", path, errno);
        if (file.close_now() != 0) fail("cannot write", path, errno);
        if (::rename(temporary.c_str(), path.c_str()) != 0) fail("cannot write", path, errno);
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
    const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.get() < 0 || ::fsync(directory.get()) != 0) fail("cannot sync", folder, errno);
}

std::string human_bytes(std::uint64_t bytes) {
    constexpr std::array<const char*, 6> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    while (value >= 1024.0 && unit + 1 < kUnits.size()) {
        value /= 1024.0;
        ++unit;
    }
    std::array<char, 48> text{};
    const bool whole = value == static_cast<double>(static_cast<std::uint64_t>(value));
    std::snprintf(text.data(), text.size(), whole ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
    return text.data();
}

}  // namespace longview::app

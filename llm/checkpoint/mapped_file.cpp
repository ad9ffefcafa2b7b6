#include "llm/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/bus_guard.h"

namespace longview::llm {
namespace {

[[noreturn]] void fail(Category category, const std::filesystem::path& path,
                       const std::string& cause) {
    throw Error(category, path.string() + " " + cause, {{"file", path.string()}});
}

std::string system_cause(int code) {
    return std::generic_category().message(code);
}

class Descriptor {
  public:
    /// Opens without waiting, so that a pipe cannot hang us, and insists on a regular file.
    explicit Descriptor(const std::filesystem::path& path) {
        fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd_ < 0 && (errno == ENOENT || errno == ENOTDIR)) {
            fail(Category::kNotFound, path, "does not exist");
        }
        if (fd_ < 0) fail(Category::kIo, path, "cannot be opened: " + system_cause(errno));
        // The destructor does not run when the constructor throws.
        if (fstat(fd_, &status_) != 0) {
            const int code = errno;
            close(fd_);
            fail(Category::kIo, path, "cannot be examined: " + system_cause(code));
        }
        if (!S_ISREG(status_.st_mode)) {
            close(fd_);
            fail(Category::kInput, path,
                 S_ISDIR(status_.st_mode) ? "is a folder; a file is needed"
                                          : "is not a regular file (a pipe or device?)");
        }
    }
    ~Descriptor() { close(fd_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    int get() const { return fd_; }
    const struct stat& status() const { return status_; }

  private:
    int fd_ = -1;
    struct stat status_ = {};
};

MappedFile::Identity identity_of(const struct stat& status) {
    MappedFile::Identity identity;
    identity.device = status.st_dev;
    identity.inode = status.st_ino;
    identity.modified_s = status.st_mtim.tv_sec;
    identity.modified_ns = status.st_mtim.tv_nsec;
    identity.size = static_cast<std::uint64_t>(status.st_size);
    return identity;
}

}  // namespace

std::string read_whole_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
    const Descriptor file(path);
    const auto size = static_cast<std::uint64_t>(file.status().st_size);
    if (size > max_bytes) {
        fail(Category::kInput, path,
             "has " + std::to_string(size) + " bytes; the limit is " + std::to_string(max_bytes));
    }
    std::string text(size, '\0');
    std::size_t done = 0;
    while (done < text.size()) {
        const ssize_t got = read(file.get(), text.data() + done, text.size() - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail(Category::kIo, path, "cannot be read: " + system_cause(errno));
        if (got == 0) fail(Category::kIo, path, "became shorter while it was read");
        done += static_cast<std::size_t>(got);
    }
    return text;
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    const Descriptor file(path);
    identity_ = identity_of(file.status());
    size_ = identity_.size;
    if (size_ == 0) return;
    void* const data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) {
        const int code = errno;
        fail(code == ENOMEM ? Category::kMemory : Category::kIo, path,
             "cannot be mapped (" + std::to_string(size_) + " bytes): " + system_cause(code));
    }
    guard_slot_ = bus_guard::add(data, size_);
    if (guard_slot_ < 0) {
        munmap(data, size_);
        fail(Category::kMemory, path,
             "cannot be mapped: more than " + std::to_string(bus_guard::kMaxRanges) +
                 " model files are open");
    }
    data_ = static_cast<std::byte*>(data);
    set_read_ahead(false);
}

MappedFile::~MappedFile() {
    if (data_ == nullptr) return;
    bus_guard::remove(guard_slot_);
    munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      identity_(other.identity_),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      guard_slot_(std::exchange(other.guard_slot_, -1)) {}

void MappedFile::set_read_ahead(bool on) const {
    // Advice only: a refusal changes nothing but speed.
    if (data_ != nullptr) madvise(data_, size_, on ? MADV_NORMAL : MADV_RANDOM);
}

bool MappedFile::damaged() const {
    return bus_guard::faulted(guard_slot_);
}

void MappedFile::check_unchanged() const {
    struct stat now = {};
    if (stat(path_.c_str(), &now) != 0) {
        fail(Category::kIo, path_, "can no longer be read: " + system_cause(errno));
    }
    const Identity identity = identity_of(now);
    if (identity.size != identity_.size) {
        fail(Category::kIo, path_,
             "had " + std::to_string(identity_.size) + " bytes when it was opened and has " +
                 std::to_string(identity.size) + " now; open the model again");
    }
    if (identity != identity_) {
        fail(Category::kIo, path_,
             "was changed or replaced since it was opened; open the model again");
    }
    if (damaged()) {
        fail(Category::kIo, path_, "could not be read in part: the disk reported an error");
    }
}

}  // namespace longview::llm

#include "llm/decoder/state_file.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/runtime/file.h"

namespace longview::llm {
namespace {

constexpr std::array<char, 8> kMagic = {'L', 'V', 'S', 'T', 'A', 'T', 'E', '\n'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
constexpr std::size_t kFingerprintChars = 32;
/// The header's checksum stands in its last 8 bytes and covers all before it.
constexpr std::size_t kDigestOffset = kStateHeaderBytes - sizeof(std::uint64_t);
constexpr std::uint64_t kMaxPositions = std::uint64_t{1} << 32;

std::uint64_t blocks_of(std::uint64_t payload_bytes) {
    return (payload_bytes + kBlockBytes - 1) / kBlockBytes;
}

std::uint64_t expected_payload(const StateLayout& layout, std::uint64_t position) {
    return position * sizeof(std::uint64_t) + layout.bytes_at(static_cast<std::int64_t>(position));
}

/// Serialises integers in little-endian order at a running offset.
class HeaderWriter {
  public:
    void bytes(const void* data, std::size_t size) {
        std::memcpy(out.data() + at_, data, size);
        at_ += size;
    }
    template <typename T>
    void number(T value) {
        bytes(&value, sizeof(value));
    }
    void skip_to(std::size_t offset) { at_ = offset; }
    std::array<std::byte, kStateHeaderBytes> out{};

  private:
    std::size_t at_ = 0;
};

class HeaderReader {
  public:
    explicit HeaderReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
    void bytes(void* to, std::size_t size) {
        std::memcpy(to, bytes_.data() + at_, size);
        at_ += size;
    }
    template <typename T>
    T number() {
        T value{};
        bytes(&value, sizeof(value));
        return value;
    }
    void skip_to(std::size_t offset) { at_ = offset; }

  private:
    std::span<const std::byte> bytes_;
    std::size_t at_ = 0;
};

std::array<std::byte, kStateHeaderBytes> make_header(const std::string& fingerprint,
                                                     const SequenceState& state,
                                                     std::uint64_t payload_bytes) {
    LONGVIEW_CHECK(fingerprint.size() == kFingerprintChars, "a fingerprint has 32 digits");
    const StateLayout& layout = state.layout();
    HeaderWriter w;
    w.bytes(kMagic.data(), kMagic.size());
    w.number(kVersion);
    w.number(std::uint32_t{0});  // flags
    w.bytes(fingerprint.data(), kFingerprintChars);
    for (const int value : {layout.lightning_layers, layout.softmax_layers, layout.heads,
                            layout.head_dim, layout.kv_heads})
        w.number(static_cast<std::uint32_t>(value));
    w.number(static_cast<std::uint32_t>(layout.kv_dtype));
    w.number(static_cast<std::uint64_t>(layout.page_tokens));
    w.number(static_cast<std::uint64_t>(state.position()));
    w.number(payload_bytes);
    w.skip_to(kDigestOffset);
    w.number(static_cast<std::uint64_t>(XXH3_64bits(w.out.data(), kDigestOffset)));
    return w.out;
}

/// Feeds a payload through blocks of 4 MiB: writes them and collects their checksums.
class PayloadWriter {
  public:
    PayloadWriter(AtomicFile& file, kernels::Backend& backend)
        : file_(file), backend_(backend), block_(kBlockBytes) {}

    void host(const void* data, std::size_t size) {
        const auto* from = static_cast<const std::byte*>(data);
        feed(size, [&](std::byte* to, std::size_t offset, std::size_t n) {
            std::memcpy(to, from + offset, n);
        });
    }
    void device(const void* data, std::size_t size) {
        const auto* from = static_cast<const std::byte*>(data);
        feed(size, [&](std::byte* to, std::size_t offset, std::size_t n) {
            if (from == nullptr) {
                std::memset(to, 0, n);  // an unwritten state is zero
            } else {
                backend_.copy_out(to, from + offset, n);
                backend_.synchronize();
            }
        });
    }
    void finish(std::uint64_t seed) {
        flush();
        file_.write(checksums_.data(), checksums_.size() * sizeof(std::uint64_t));
        const std::uint64_t total = XXH3_64bits_withSeed(
            checksums_.data(), checksums_.size() * sizeof(std::uint64_t), seed);
        file_.write(&total, sizeof(total));
    }

  private:
    template <typename Copy>
    void feed(std::size_t size, const Copy& copy) {
        for (std::size_t offset = 0; offset < size;) {
            const std::size_t n = std::min(size - offset, kBlockBytes - filled_);
            copy(block_.data() + filled_, offset, n);
            filled_ += n;
            offset += n;
            if (filled_ == kBlockBytes) flush();
        }
    }
    void flush() {
        if (filled_ == 0) return;
        checksums_.push_back(XXH3_64bits(block_.data(), filled_));
        file_.write(block_.data(), filled_);
        filled_ = 0;
    }

    AtomicFile& file_;
    kernels::Backend& backend_;
    std::vector<std::byte> block_;
    std::size_t filled_ = 0;
    std::vector<std::uint64_t> checksums_;
};

/// Hands out the payload in order, verifying each block before any of its bytes is used.
class PayloadReader {
  public:
    PayloadReader(const ReadAt& read, const StateFileHeader& header, const std::string& origin)
        : read_(read), header_(header), origin_(origin), block_(kBlockBytes) {
        checksums_.resize(blocks_of(header.payload_bytes));
        const std::uint64_t table = kStateHeaderBytes + header.payload_bytes;
        const std::size_t table_bytes = checksums_.size() * sizeof(std::uint64_t);
        read(table, checksums_.data(), table_bytes);
        std::uint64_t total = 0;
        read(table + table_bytes, &total, sizeof(total));
        if (total != XXH3_64bits_withSeed(checksums_.data(), table_bytes, header.digest))
            throw Error(Category::kInput,
                        origin +
                            " is damaged: its table of checksums does not match. The text "
                            "has to be read again");
    }

    template <typename Sink>
    void take(std::size_t size, const Sink& sink) {
        for (std::size_t offset = 0; offset < size;) {
            if (used_ == filled_) load();
            const std::size_t n = std::min(size - offset, filled_ - used_);
            sink(offset, block_.data() + used_, n);
            used_ += n;
            offset += n;
        }
    }

  private:
    void load() {
        const std::uint64_t begin = next_ * kBlockBytes;
        filled_ = static_cast<std::size_t>(
            std::min<std::uint64_t>(kBlockBytes, header_.payload_bytes - begin));
        read_(kStateHeaderBytes + begin, block_.data(), filled_);
        if (XXH3_64bits(block_.data(), filled_) != checksums_[next_])
            throw Error(Category::kInput, origin_ + " is damaged: the checksum of bytes " +
                                              std::to_string(kStateHeaderBytes + begin) + " to " +
                                              std::to_string(kStateHeaderBytes + begin + filled_) +
                                              " differs. The text has to be read again");
        ++next_;
        used_ = 0;
    }

    const ReadAt& read_;
    const StateFileHeader& header_;
    const std::string& origin_;
    std::vector<std::byte> block_;
    std::vector<std::uint64_t> checksums_;
    std::size_t next_ = 0;
    std::size_t filled_ = 0;
    std::size_t used_ = 0;
};

[[noreturn]] void not_usable(const std::string& origin, const std::string& why) {
    throw Error(Category::kInput, origin + " " + why, {{"path", origin}});
}

}  // namespace

StateFileHeader parse_state_header(std::span<const std::byte> bytes, std::uint64_t file_bytes,
                                   const std::string& origin) {
    if (bytes.size() < kStateHeaderBytes || file_bytes < kStateHeaderBytes)
        not_usable(origin, "is too short for a saved state");
    HeaderReader r(bytes);
    std::array<char, 8> magic{};
    r.bytes(magic.data(), magic.size());
    if (magic != kMagic) not_usable(origin, "is not a saved state");
    const auto version = r.number<std::uint32_t>();
    const auto flags = r.number<std::uint32_t>();
    StateFileHeader header;
    header.fingerprint.resize(kFingerprintChars);
    r.bytes(header.fingerprint.data(), kFingerprintChars);
    std::array<std::uint32_t, 5> sizes{};
    for (std::uint32_t& value : sizes) value = r.number<std::uint32_t>();
    const auto dtype = r.number<std::uint32_t>();
    const auto page_tokens = r.number<std::uint64_t>();
    const auto position = r.number<std::uint64_t>();
    header.payload_bytes = r.number<std::uint64_t>();
    r.skip_to(kDigestOffset);
    header.digest = r.number<std::uint64_t>();
    if (header.digest != XXH3_64bits(bytes.data(), kDigestOffset))
        not_usable(origin, "is damaged: the checksum of its header differs");
    if (version != kVersion || flags != 0)
        throw Error(Category::kUnsupported,
                    origin + " was written in format " + std::to_string(version) + "/" +
                        std::to_string(flags) + "; this program reads format 1/0");
    // A forged header could still carry a right checksum; sizes bound everything that follows.
    constexpr std::uint32_t kMost = 1U << 16;
    if (std::any_of(sizes.begin(), sizes.end(), [](std::uint32_t v) { return v > kMost; }) ||
        page_tokens == 0 || page_tokens > kMost || position > kMaxPositions || dtype > 2)
        not_usable(origin, "has impossible sizes in its header");
    header.layout = {.lightning_layers = static_cast<int>(sizes[0]),
                     .softmax_layers = static_cast<int>(sizes[1]),
                     .heads = static_cast<int>(sizes[2]),
                     .head_dim = static_cast<int>(sizes[3]),
                     .kv_heads = static_cast<int>(sizes[4]),
                     .page_tokens = static_cast<std::int64_t>(page_tokens),
                     .kv_dtype = static_cast<DType>(dtype)};
    header.position = static_cast<std::int64_t>(position);
    return header;
}

SavedState read_state(const ReadAt& read, std::uint64_t file_bytes, const std::string& origin,
                      const std::string& fingerprint, const StateLayout& layout,
                      kernels::Backend& backend) {
    std::array<std::byte, kStateHeaderBytes> raw{};
    if (file_bytes < raw.size()) not_usable(origin, "is too short for a saved state");
    read(0, raw.data(), raw.size());
    const StateFileHeader header = parse_state_header(raw, file_bytes, origin);
    if (header.fingerprint != fingerprint)
        not_usable(origin, "belongs to another model; it was not loaded");
    if (header.layout != layout)
        not_usable(origin, "was made with other settings of keys and values; it was not loaded");
    const auto position = static_cast<std::uint64_t>(header.position);
    if (header.payload_bytes != expected_payload(layout, position))
        not_usable(origin, "has impossible sizes in its header");
    const std::uint64_t need = kStateHeaderBytes + header.payload_bytes +
                               (blocks_of(header.payload_bytes) + 1) * sizeof(std::uint64_t);
    if (file_bytes != need)
        not_usable(origin, "has " + std::to_string(file_bytes) + " bytes where its header needs " +
                               std::to_string(need) + ": it was cut off or changed");

    PayloadReader payload(read, header, origin);
    SavedState saved{PositionKeys(position), SequenceState(backend, layout)};
    payload.take(position * sizeof(std::uint64_t),
                 [&](std::size_t offset, const std::byte* from, std::size_t n) {
                     std::memcpy(reinterpret_cast<std::byte*>(saved.keys.data()) + offset, from, n);
                 });
    saved.state.prepare(std::max<std::int64_t>(header.position, 1));
    const auto into = [&](void* to) {
        return [&backend, to](std::size_t offset, const std::byte* from, std::size_t n) {
            backend.copy_in(static_cast<std::byte*>(to) + offset, from, n);
            backend.synchronize();
        };
    };
    if (layout.lightning_bytes() > 0)
        payload.take(layout.lightning_bytes(), into(saved.state.lightning(0)));
    const std::size_t pages = (layout.bytes_at(header.position) - layout.lightning_bytes()) /
                              std::max<std::size_t>(layout.page_bytes(), 1);
    for (std::size_t i = 0; i < pages; ++i)
        payload.take(layout.page_bytes(), into(saved.state.pages()[i]->data()));
    saved.state.advance(header.position);
    return saved;
}

SavedState read_state_file(const std::filesystem::path& path, const std::string& fingerprint,
                           const StateLayout& layout, kernels::Backend& backend) {
    const FileReader file(path);
    const ReadAt read = [&](std::uint64_t offset, void* to, std::size_t size) {
        file.read(offset, to, size);
    };
    return read_state(read, file.size_bytes(), path.string(), fingerprint, layout, backend);
}

void write_state_file(const std::filesystem::path& path, const std::string& fingerprint,
                      std::span<const std::uint64_t> keys, const SequenceState& state) {
    LONGVIEW_CHECK(static_cast<std::int64_t>(keys.size()) == state.position(),
                   "one key for each position");
    const StateLayout& layout = state.layout();
    const std::uint64_t payload = expected_payload(layout, keys.size());
    AtomicFile file(path,
                    kStateHeaderBytes + payload + (blocks_of(payload) + 1) * sizeof(std::uint64_t));
    const auto header = make_header(fingerprint, state, payload);
    file.write(header.data(), header.size());
    const StateFileHeader parsed = parse_state_header(header, header.size(), path.string());

    PayloadWriter writer(file, state.backend());
    writer.host(keys.data(), keys.size_bytes());
    writer.device(state.lightning_data(), layout.lightning_bytes());
    const std::size_t pages =
        layout.page_bytes() == 0
            ? 0
            : (layout.bytes_at(state.position()) - layout.lightning_bytes()) / layout.page_bytes();
    for (std::size_t i = 0; i < pages; ++i)
        writer.device(state.pages()[i]->data(), layout.page_bytes());
    writer.finish(parsed.digest);
    file.commit();
}

}  // namespace longview::llm

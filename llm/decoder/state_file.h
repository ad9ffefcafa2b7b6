// A sequence state in a file: header with the model, the layout and the number of positions; then
// keys, lightning matrices and pages; then a checksum for every 4 MiB and one for all.
// Little-endian. The page llm/README.md describes the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "llm/decoder/sequence_state.h"

namespace longview::llm {

/// What each position of a sequence is, so that a saved state is only reused for the exact same
/// beginning: a token id, or a number made from a picture's content and the place inside it.
using PositionKeys = std::vector<std::uint64_t>;

struct StateFileHeader {
    std::string fingerprint;  // 32 hex digits, Checkpoint::fingerprint()
    StateLayout layout;
    std::int64_t position = 0;
    std::uint64_t payload_bytes = 0;
    std::uint64_t digest = 0;
};
inline constexpr std::size_t kStateHeaderBytes = 128;

/// Reads and checks a header against the size of the whole file; `origin` names it in errors.
/// Errors: kInput (not a state file, damaged, truncated), kUnsupported (newer format).
StateFileHeader parse_state_header(std::span<const std::byte> bytes, std::uint64_t file_bytes,
                                   const std::string& origin);

/// Reads bytes [offset, offset + size) of a file or a block of memory into `to`, or throws.
using ReadAt = std::function<void(std::uint64_t offset, void* to, std::size_t size)>;

struct SavedState {
    PositionKeys keys;
    SequenceState state;
};

/// Errors: those of the header; kInput when the state belongs to another model or a checksum
/// differs (naming the byte range). Nothing is returned before everything is verified.
SavedState read_state(const ReadAt& read, std::uint64_t file_bytes, const std::string& origin,
                      const std::string& fingerprint, const StateLayout& layout,
                      kernels::Backend& backend);
SavedState read_state_file(const std::filesystem::path& path, const std::string& fingerprint,
                           const StateLayout& layout, kernels::Backend& backend);

/// Replaces `path` by the state; keys has one entry a position. Errors: kIo.
void write_state_file(const std::filesystem::path& path, const std::string& fingerprint,
                      std::span<const std::uint64_t> keys, const SequenceState& state);

}  // namespace longview::llm

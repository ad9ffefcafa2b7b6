// Reading and writing whole files with the checks that user files need.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace longview::app {

/// The bytes of a regular file. A pipe, device or folder is refused rather than waited for.
/// Errors: kNotFound, kInput (not a regular file, larger than the limit), kIo.
std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes);

/// Replaces a file so that, whatever happens, either the old or the new one is there: temporary
/// file in the same folder, fdatasync, rename, fsync of the folder. Errors: kIo, kNotFound.
void write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

/// "64 MiB", "1.5 GiB", "900 bytes".
std::string human_bytes(std::uint64_t bytes);

}  // namespace longview::app

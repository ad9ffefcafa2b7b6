// The header of one safetensors file, checked before anything is used. Private to llm/checkpoint.
//
//   8 bytes little-endian N | N bytes of JSON | data
//   {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__":
//   {..}}
// Source: the format's description at github.com/huggingface/safetensors.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace longview::llm {

/// As in the reference implementation.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
/// A million keys; the published model has 8637 tensors in all.
inline constexpr std::size_t kMaxTensorsPerFile = 250'000;
inline constexpr std::size_t kMaxTensorNameBytes = 512;
inline constexpr int kMaxUsableRank = 4;

struct StoredTensor {
    std::string name;
    DType dtype = DType::kBF16;
    int rank = 0;                         // 0..4; 0 is a scalar
    std::array<std::int64_t, 4> shape{};  // shape[0..rank)
    std::uint64_t offset = 0;             // of the first byte, from the start of the file
    std::uint64_t size_bytes = 0;
};

/// Reads the header of a file that lies in memory (or is mapped); touches no data. `name` stands
/// in errors. The result is in order of offset: the tensors follow each other without hole or
/// overlap and end with the file; every size equals shape times element size, and every offset is
/// a multiple of the element size.
/// Errors: kInput (damaged, incomplete, or not a safetensors file), kUnsupported (dtype, rank,
/// alignment), each naming file and cause.
std::vector<StoredTensor> read_safetensors_header(std::span<const std::byte> file,
                                                  std::string_view name);

}  // namespace longview::llm

// Checkpoint folders made for tests: the full model without data blocks, and tiny ones with real
// random weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llm/checkpoint/checkpoint.h"

namespace longview::test {

/// The configuration of MiniMax-VL-01 itself, from tests/data/minimax-vl-01.
llm::ModelConfig published_config();

/// A model small enough for a formula in a test: hidden 64, 4 heads of 16 (2 for keys/values), 4
/// experts of 48, vocabulary 96, tiles of 28 pixels, one vision layer. Odd layers are softmax.
llm::ModelConfig tiny_config(int layers = 4);

/// Both configuration files as text, in the published dialect.
std::string config_json(const llm::ModelConfig& config);
std::string preprocessor_json(const llm::ModelConfig& config);

struct FakeTensor {
    std::string name;
    std::string dtype = "BF16";
    std::vector<std::int64_t> shape;
};

/// Length and JSON of a safetensors file whose tensors follow each other in this order. The data
/// begins at a multiple of 8.
std::string safetensors_prefix(std::span<const FakeTensor> tensors);
/// Bytes of the tensors' data.
std::uint64_t data_bytes(std::span<const FakeTensor> tensors);

void write_file(const std::filesystem::path& path, std::string_view bytes);

/// A whole checkpoint of `shards` files, numbered from zero as published, without data blocks on
/// disk (they read as zeros).
void write_sparse_checkpoint(const std::filesystem::path& folder, const llm::ModelConfig& config,
                             int shards);

/// A whole checkpoint with random BF16 weights of sensible size (products keep their magnitude,
/// norm gains are near 1), the same for the same seed on every machine.
void make_tiny_checkpoint(const std::filesystem::path& folder, const llm::ModelConfig& config,
                          std::uint64_t seed, int shards = 2);

}  // namespace longview::test

// A checkpoint folder in the Hugging Face layout, opened and checked: config.json,
// preprocessor_config.json, model.safetensors.index.json and its shards, memory-mapped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/runtime/weight_source.h"
#include "llm/checkpoint/config.h"

namespace longview::llm {

/// A tensor that the configuration demands.
struct TensorSpec {
    std::string name;
    std::vector<std::int64_t> shape;
};

/// All tensors of a model with this configuration, names as published (model-spec 9.1).
std::vector<TensorSpec> expected_tensors(const ModelConfig& config);

/// What a checkpoint holds, for `inspect` and the model page.
struct CheckpointSummary {
    struct Part {
        std::string name;  // "experts", "lightning attention", ...
        std::int64_t tensors = 0;
        std::int64_t parameters = 0;
        std::int64_t bytes = 0;
    };
    std::vector<Part> parts;
    std::vector<Part> dtypes;  // name is "BF16", ...
    std::int64_t tensors = 0;
    std::int64_t parameters = 0;
    std::int64_t active_parameters = 0;  // for a token, without embedding and head
    std::int64_t bytes = 0;
    std::int64_t shards = 0;
    std::vector<std::string> problems;  // odd but harmless, a sentence each
};

class Checkpoint final : public WeightSource {
  public:
    /// Opens and checks everything but the values; reads headers only.
    /// Errors: kNotFound, kInput (what is wrong in which file), kUnsupported, kIo.
    static std::unique_ptr<Checkpoint> open(const std::filesystem::path& folder);
    ~Checkpoint() override;

    const ModelConfig& config() const;
    const std::filesystem::path& folder() const;
    HostTensor tensor(std::string_view name) const override;
    CheckpointSummary summary() const;
    /// 128 bits as 32 hex digits over configuration, tensor names, types, shapes, and samples of
    /// the data: names the model in saved states. Computed by the first call, which reads at most
    /// 4 MiB. Errors: kIo.
    const std::string& fingerprint() const;
    /// Throws kIo when a shard's size, time or identity changed since it was opened, or when part
    /// of it could not be read. Bytes that vanish under the mapping read as zeros rather than end
    /// the process, so ask this before a result that was computed from them is shown.
    void check_unchanged() const;

  private:
    struct Impl;
    explicit Checkpoint(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace longview::llm

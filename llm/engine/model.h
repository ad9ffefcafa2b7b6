// A loaded model and what it remembers; everything the engine's thread does. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/cancel.h"
#include "kernels/runtime/thread_pool.h"
#include "llm/decoder/decoder.h"
#include "llm/engine/engine.h"
#include "llm/engine/prefix_cache.h"
#include "llm/engine/prompt.h"
#include "vision/encoder/encoder.h"

namespace longview::llm {

class Model {
  public:
    /// Errors: all categories of loading.
    Model(const EngineOptions& options, const std::function<void(double)>& progress);
    ~Model();

    const ModelInfo& info() const { return info_; }
    const Tokenizer& tokenizer() const { return *tokenizer_; }
    const ModelConfig& config() const { return checkpoint_->config(); }

    /// Answers one request; events end with kFinished. Errors are thrown, cancelling is not one.
    void answer(const Request& request, const EventSink& sink, const CancelFlag& cancel);

    void save_state(const std::filesystem::path& path) const;
    std::int64_t load_state(const std::filesystem::path& path);
    Engine::Speed measure(std::int64_t prompt_tokens, std::int64_t decode_tokens);
    std::vector<float> logits(const std::vector<Message>& messages);

  private:
    struct Reading;
    struct Features {
        std::uint64_t digest = 0;
        Buffer rows;
        std::int64_t count = 0;
    };

    void suppress_ids();
    void check_memory(const Prompt& prompt, std::int64_t reused, std::size_t checkpoints);
    std::vector<RowsAt> encode_images(Reading& reading);
    PrefillResult read(Reading& reading);
    FinishReason write(Reading& reading, const float* logits, const Request& request);
    /// Whether the answer, sent back as history, becomes the same ids; only then is the state after
    /// it of use to the next question.
    bool reads_back(std::span<const std::int32_t> ids) const;
    ConstMatrix features_of(const PromptImage& image, const std::function<void(int)>& done);

    std::unique_ptr<Checkpoint> checkpoint_;
    std::unique_ptr<Tokenizer> tokenizer_;
    ThreadPool pool_;
    std::unique_ptr<kernels::Backend> backend_;
    std::unique_ptr<WeightStore> weights_;
    std::unique_ptr<vision::Encoder> encoder_;
    std::unique_ptr<Decoder> decoder_;
    std::unique_ptr<ChatFormat> format_;
    std::unique_ptr<PrefixCache> cache_;
    std::list<Features> features_;  // of recent pictures, most recent first
    Buffer suppressed_;             // [vocab] bytes, backend memory
    std::uint64_t memory_limit_;
    ModelInfo info_;
};

}  // namespace longview::llm

// The only door to the model: load it, ask, hear events, cancel. Standard types only; how and
// where it computes is hidden. Callers: app/cli, app/server.
//
// Requests are answered one at a time in the order they came, on the engine's own thread; events
// are delivered there too (those of a request cancelled while it waits: by cancel()'s thread).
// All members may be called from any thread but the engine's own, where only submit() and
// cancel() may be; the others wait for their turn behind the requests.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llm/checkpoint/checkpoint.h"
#include "llm/tokenizer/chat_format.h"
#include "vision/image/image.h"

namespace longview::llm {

enum class DeviceChoice { kAuto, kCpu, kCuda };

struct EngineOptions {
    std::filesystem::path model;  // checkpoint folder
    DeviceChoice device = DeviceChoice::kAuto;
    int threads = 0;                       // CPU; 0: all the process may use
    std::uint64_t memory_limit_bytes = 0;  // 0: what the machine has free
    std::int64_t super_chunk_tokens = 0;   // 0: by plan
};

struct ModelInfo {
    std::string name;         // folder name
    std::string device;       // "cpu" or "cuda"
    std::string device_name;  // "AMD EPYC ..., 2 threads"
    std::string device_note;  // why this device, when the choice needs explaining; else empty
    std::string fingerprint;
    CheckpointSummary checkpoint;
    std::uint64_t memory_bytes = 0;  // held by weights now
    std::int64_t suppressed_ids = 0;
};

struct Part {
    enum class Kind { kText, kImage } kind = Kind::kText;
    std::string text;
    std::shared_ptr<const vision::Image> image;
};
Part text_part(std::string text);
Part image_part(vision::Image image);

struct Message {
    Role role = Role::kUser;
    std::vector<Part> parts;
    std::string name;  // Role::kFunction
};

/// Order and meaning in kernels::SampleParams. The penalties look at the answer so far, not at the
/// prompt: what stands in a document may be quoted as often as needed.
struct SamplingOptions {
    float temperature = 0.0F;
    int top_k = 0;
    float top_p = 1.0F;
    float min_p = 0.0F;
    float repetition_penalty = 1.0F;
    float presence_penalty = 0.0F;
    float frequency_penalty = 0.0F;
    std::uint64_t seed = 0;
};

struct Request {
    std::vector<Message> messages;
    std::vector<ChatTool> tools;
    SamplingOptions sampling;
    std::int64_t max_tokens = 1024;
    std::vector<std::string> stop;  // texts that end the answer; not part of it
};

enum class FinishReason { kStop, kLength, kCancelled };
const char* finish_reason_name(FinishReason reason);  // "stop", "length", "cancelled"

struct Statistics {
    std::int64_t prompt_tokens = 0;
    std::int64_t reused_tokens = 0;  // of the prompt, already known
    std::int64_t image_tokens = 0;   // of the prompt
    std::int64_t completion_tokens = 0;
    double prefill_seconds = 0.0;  // tokenising, pictures and reading
    double decode_seconds = 0.0;
};

struct Event {
    enum class Kind { kProgress, kText, kFinished, kFailed } kind = Kind::kProgress;
    // kProgress: reading the prompt
    double work_done = 0.0;  // 0 ... work_total, in units of model work
    double work_total = 0.0;
    double seconds_left = -1.0;  // < 0: not known yet
    // kText: whole UTF-8 characters
    std::string text;
    // kFinished and kFailed
    FinishReason reason = FinishReason::kStop;
    std::string error;                   // kFailed: a sentence to act on
    Category category = Category::kBug;  // kFailed
    Statistics statistics;               // also filled on kProgress as far as known
};

using RequestId = std::uint64_t;
using EventSink = std::function<void(const Event&)>;

class Engine {
  public:
    /// Loads a model; `progress` hears 0 ... 1. Errors: all categories of loading.
    static std::unique_ptr<Engine> load(const EngineOptions& options,
                                        const std::function<void(double)>& progress = {});
    ~Engine();  // cancels what runs and waits

    const ModelInfo& info() const;
    const Tokenizer& tokenizer() const;
    const ModelConfig& config() const;

    /// Queues a request. Exactly one of kFinished and kFailed ends its events. The sink must not
    /// throw and must not call back into the engine other than cancel() and submit().
    RequestId submit(Request request, EventSink sink);
    /// Ends a request within 100 ms as kFinished with kCancelled; unknown ids are ignored.
    void cancel(RequestId id);

    /// Blocking form: events go to the sink, the answer's text comes back. Errors are thrown.
    struct Answer {
        std::string text;
        FinishReason reason = FinishReason::kStop;
        Statistics statistics;
    };
    Answer ask(Request request, const EventSink& sink = {});

    /// Writes everything remembered of the conversation that ends the last request to a file, so
    /// that a later process goes on without reading it again. Errors: kIo, kInput (nothing yet).
    void save_state(const std::filesystem::path& path);
    /// Takes such a file into the states that new requests may reuse; returns its tokens.
    /// Errors: kInput when it is damaged or belongs to another model.
    std::int64_t load_state(const std::filesystem::path& path);

    /// Raw speed at given lengths, for `bench` (no chat format, synthetic ids).
    struct Speed {
        std::int64_t prompt_tokens = 0;
        std::int64_t decode_tokens = 0;
        double prefill_seconds = 0.0;
        double decode_seconds = 0.0;
    };
    Speed measure(std::int64_t prompt_tokens, std::int64_t decode_tokens);

    /// Logits of the last position of a prompt, for `selftest` and tests. [vocab_size]
    std::vector<float> logits(const std::vector<Message>& messages);

  private:
    struct Impl;
    explicit Engine(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace longview::llm

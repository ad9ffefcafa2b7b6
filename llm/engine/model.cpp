#include "llm/engine/model.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "kernels/runtime/cuda_devices.h"
#include "llm/decoder/cost.h"
#include "llm/engine/stop_text.h"

namespace longview::llm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A decode step shorter than this is finished before a cancel is obeyed, which leaves the state
/// whole; a longer one is broken off.
constexpr double kSlowStepSeconds = 0.05;
constexpr double kProgressSeconds = 0.05;
/// Room for the answer is taken in pieces of this many positions, outside the token loop's body.
constexpr std::int64_t kAnswerRoom = 1024;
constexpr std::size_t kMaxCheckpoints = 8;

std::string gigabytes(std::uint64_t bytes) {
    const std::uint64_t tenths = (bytes + 50'000'000) / 100'000'000;
    return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GB";
}

/// Room on a device beside the weights: activations of a chunk, the state and what the driver
/// keeps.
constexpr std::uint64_t kDeviceWorkBytes = 3'000'000'000;

std::unique_ptr<kernels::Backend> make_gpu_backend(const EngineOptions& options,
                                                   std::uint64_t weight_bytes) {
    auto backend = kernels::make_cuda_backend({.memory_limit_bytes = options.memory_limit_bytes});
    const kernels::DeviceInfo device = backend->device();
    const std::uint64_t need = weight_bytes + std::min(kDeviceWorkBytes, weight_bytes / 4);
    if (need > device.memory_free_bytes)
        throw Error(
            Category::kMemory,
            device.name + " has " + gigabytes(device.memory_free_bytes) +
                " free, and this model needs " + gigabytes(need) +
                " there. Close other programs that use it, or use --device cpu",
            {{"needed", std::to_string(need)}, {"free", std::to_string(device.memory_free_bytes)}});
    return backend;
}

/// The GPU where there is one that holds the model, else the CPU; `note` says why not the GPU.
std::unique_ptr<kernels::Backend> make_backend(const EngineOptions& options, ThreadPool& pool,
                                               std::uint64_t weight_bytes, std::string& note) {
    if (options.device == DeviceChoice::kCpu) return kernels::make_cpu_backend(pool);
    const std::vector<CudaDevice> gpus = list_cuda_devices();
    const bool forced = options.device == DeviceChoice::kCuda;
    if (gpus.empty()) {
        if (forced)
            throw Error(Category::kUnsupported,
                        std::string("this program cannot compute on a GPU here: ") +
                            (built_with_cuda() ? "no usable NVIDIA GPU was found"
                                               : "it was built without CUDA") +
                            ". Use --device cpu or --device auto");
        return kernels::make_cpu_backend(pool);
    }
    try {
        return make_gpu_backend(options, weight_bytes);
    } catch (const Error& error) {
        if (forced) throw;
        note =
            gpus.front().name + " is not used, everything is computed on the CPU: " + error.what();
    }
    return kernels::make_cpu_backend(pool);
}

void check_request(const Request& r) {
    const SamplingOptions& s = r.sampling;
    const auto refuse = [](const std::string& what) { throw Error(Category::kInput, what); };
    if (r.max_tokens < 1) refuse("max_tokens must be at least 1");
    if (!(s.temperature >= 0.0F && s.temperature <= 100.0F))
        refuse("temperature must be between 0 and 100");
    if (s.top_k < 0) refuse("top_k must be 0 (all) or more");
    if (!(s.top_p > 0.0F && s.top_p <= 1.0F)) refuse("top_p must be above 0 and at most 1");
    if (!(s.min_p >= 0.0F && s.min_p <= 1.0F)) refuse("min_p must be between 0 and 1");
    if (!(s.repetition_penalty > 0.0F && s.repetition_penalty <= 100.0F))
        refuse("repetition_penalty must be above 0 and at most 100");
    if (!(s.presence_penalty >= -100.0F && s.presence_penalty <= 100.0F) ||
        !(s.frequency_penalty >= -100.0F && s.frequency_penalty <= 100.0F))
        refuse("presence_penalty and frequency_penalty must be between -100 and 100");
}

}  // namespace

/// One request on its way: prompt, state, progress and statistics.
struct Model::Reading {
    Prompt prompt;
    SequenceState state;
    std::int64_t reused = 0;
    const EventSink& sink;
    const CancelFlag& cancel;
    Clock::time_point start = Clock::now();
    Clock::time_point last_event{};
    double work_total = 0.0;
    double vision_done = 0.0;
    Statistics statistics;

    void progress(double done, bool last = false) {
        const double elapsed = seconds_since(start);
        if (!last && seconds_since(last_event) < kProgressSeconds) return;
        last_event = Clock::now();
        Event event;
        event.work_done = std::min(done, work_total);
        event.work_total = work_total;
        constexpr double kSettled = 0.3;  // before that the rate says nothing
        if (elapsed > kSettled && done > 0.0)
            event.seconds_left = elapsed * std::max(0.0, work_total / done - 1.0);
        event.statistics = statistics;
        if (sink) sink(event);
    }
    void text(std::string piece) const {
        if (piece.empty() || !sink) return;
        Event event;
        event.kind = Event::Kind::kText;
        event.text = std::move(piece);
        sink(event);
    }
};

Model::Model(const EngineOptions& options, const std::function<void(double)>& progress)
    : pool_(options.threads), memory_limit_(options.memory_limit_bytes) {
    checkpoint_ = Checkpoint::open(options.model);
    tokenizer_ = load_tokenizer(options.model);
    const ModelConfig& config = checkpoint_->config();
    if (tokenizer_->size() > config.text.vocab_size)
        throw Error(Category::kInput, options.model.string() + ": the tokenizer has ids up to " +
                                          std::to_string(tokenizer_->size() - 1) +
                                          ", but the model only " +
                                          std::to_string(config.text.vocab_size) +
                                          " (vocab_size). The files belong to different models");
    format_ = std::make_unique<ChatFormat>(*tokenizer_, config.image_token_index);
    backend_ =
        make_backend(options, pool_, static_cast<std::uint64_t>(checkpoint_->summary().bytes),
                     info_.device_note);
    weights_ = std::make_unique<WeightStore>(*backend_, config, *checkpoint_, progress);
    encoder_ = std::make_unique<vision::Encoder>(*backend_, config.vision, config.preprocess,
                                                 *checkpoint_);
    suppress_ids();

    const kernels::DeviceInfo device = backend_->device();
    const std::uint64_t free = memory_limit_ != 0 ? memory_limit_ : device.memory_free_bytes;
    DecoderOptions decoder_options;
    decoder_options.chunk_tokens = backend_->preferred_chunk_tokens();
    if (options.super_chunk_tokens > 0) {
        decoder_options.super_chunk_tokens = options.super_chunk_tokens;
    } else {
        // An eighth of the memory for the residual stream of a super-chunk; 16 k tokens at least,
        // so that a layer's weights are used often enough once they are at hand.
        const auto row = static_cast<std::uint64_t>(config.text.hidden_size) *
                         size_of(backend_->activation_dtype());
        decoder_options.super_chunk_tokens =
            std::clamp<std::int64_t>(static_cast<std::int64_t>(free / 8 / row), 16384, 1 << 20);
    }
    decoder_ = std::make_unique<Decoder>(*backend_, config, *weights_, decoder_options);
    cache_ = std::make_unique<PrefixCache>(free / 4);

    std::filesystem::path folder = options.model;
    if (!folder.has_filename()) folder = folder.parent_path();
    info_.name = folder.filename().string();
    info_.device = device.kind;
    info_.device_name = device.name;
    info_.fingerprint = checkpoint_->fingerprint();
    info_.checkpoint = checkpoint_->summary();
    info_.memory_bytes = weights_->allocated_bytes() + weights_->borrowed_bytes();
}

Model::~Model() = default;

void Model::suppress_ids() {
    const ModelConfig& config = checkpoint_->config();
    std::vector<std::uint8_t> suppressed(static_cast<std::size_t>(config.text.vocab_size), 0);
    for (const std::int32_t id : weights_->zero_rows())
        suppressed[static_cast<std::size_t>(id)] = 1;
    for (TokenId id = 0; id < config.text.vocab_size; ++id)
        if (!tokenizer_->defined(id)) suppressed[static_cast<std::size_t>(id)] = 1;
    suppressed[static_cast<std::size_t>(config.image_token_index)] = 1;
    suppressed_ = backend_->allocate(suppressed.size());
    backend_->copy_in(suppressed_.data(), suppressed.data(), suppressed.size());
    info_.suppressed_ids = std::count(suppressed.begin(), suppressed.end(), 1);
}

void Model::check_memory(const Prompt& prompt, std::int64_t reused, std::size_t checkpoints) {
    const StateLayout layout = decoder_->new_state().layout();
    const auto tokens = static_cast<std::int64_t>(prompt.ids.size());
    const std::uint64_t pages = layout.bytes_at(tokens) - layout.bytes_at(reused);
    std::uint64_t picture_rows = 0;
    for (const PromptImage& image : prompt.images)
        if (image.span.begin + image.span.length > reused)
            picture_rows += static_cast<std::uint64_t>(image.span.length) *
                            static_cast<std::uint64_t>(config().text.hidden_size) *
                            size_of(backend_->activation_dtype());
    const std::uint64_t need = pages + (checkpoints + 2) * layout.lightning_bytes() +
                               decoder_->workspace_bytes(tokens - reused) + picture_rows;
    const auto available = [&] {
        const std::uint64_t free = backend_->device().memory_free_bytes;
        if (memory_limit_ == 0) return free;
        const std::uint64_t held = weights_->allocated_bytes() + cache_->bytes();
        return std::min(free, memory_limit_ - std::min(memory_limit_, held));
    };
    if (need <= available()) return;
    cache_->clear();
    features_.clear();
    if (need <= available()) return;
    throw Error(Category::kMemory,
                "this prompt of " + std::to_string(tokens) + " tokens needs " + gigabytes(need) +
                    " of memory, but only " + gigabytes(available()) +
                    " are free. Nothing was read. Ask about a part of the document, or close "
                    "other programs",
                {{"needed", std::to_string(need)}, {"free", std::to_string(available())}});
}

ConstMatrix Model::features_of(const PromptImage& image, const std::function<void(int)>& done) {
    const std::int64_t width = config().text.hidden_size;
    const DType dtype = backend_->activation_dtype();
    const auto known = std::find_if(features_.begin(), features_.end(),
                                    [&](const Features& f) { return f.digest == image.digest; });
    if (known != features_.end()) {
        features_.splice(features_.begin(), features_, known);
        if (done) done(image.plan.views());
    } else {
        Features fresh;
        fresh.digest = image.digest;
        fresh.count = image.plan.tokens;
        fresh.rows =
            backend_->allocate(static_cast<std::size_t>(fresh.count * width) * size_of(dtype));
        const vision::TiledImage tiles = vision::cut_tiles(*image.image, config().preprocess);
        encoder_->encode(tiles, {fresh.rows.data(), dtype, fresh.count, width, width}, done);
        features_.push_front(std::move(fresh));
    }
    const Features& f = features_.front();
    return {f.rows.data(), dtype, f.count, width, width};
}

std::vector<RowsAt> Model::encode_images(Reading& reading) {
    std::vector<RowsAt> rows;
    const double per_view = view_work(config().vision);
    for (const PromptImage& image : reading.prompt.images) {
        const std::int64_t end = image.span.begin + image.span.length;
        if (end <= reading.reused) continue;
        const double before = reading.vision_done;
        const ConstMatrix all = features_of(image, [&](int views) {
            reading.vision_done = before + views * per_view;
            reading.progress(reading.vision_done);
        });
        reading.vision_done = before + image.plan.views() * per_view;
        const std::int64_t skip = std::max<std::int64_t>(0, reading.reused - image.span.begin);
        rows.push_back(
            {image.span.begin + skip - reading.reused, all.slice(skip, image.span.length - skip)});
    }
    return rows;
}

PrefillResult Model::read(Reading& reading) {
    const Prompt& prompt = reading.prompt;
    const auto total = static_cast<std::int64_t>(prompt.ids.size());
    PrefillInput input;
    for (const std::int64_t b : prompt.boundaries)
        if (b > reading.reused && b < total) input.cuts.push_back(b);
    const std::size_t kept = std::min(input.cuts.size(), kMaxCheckpoints);
    input.checkpoints.assign(input.cuts.end() - static_cast<std::ptrdiff_t>(kept),
                             input.cuts.end());
    check_memory(prompt, reading.reused, kept);

    int views = 0;
    for (const PromptImage& image : prompt.images)
        if (image.span.begin + image.span.length > reading.reused) views += image.plan.views();
    reading.work_total = views * view_work(config().vision) +
                         prefill_work(config().text, reading.reused, total - reading.reused);
    reading.progress(0.0, true);
    input.rows = encode_images(reading);
    input.ids = std::span(prompt.ids).subspan(static_cast<std::size_t>(reading.reused));
    input.progress = [&](double done) { reading.progress(reading.vision_done + done); };
    PrefillResult result = decoder_->prefill(reading.state, input);
    reading.progress(reading.work_total, true);
    // Recent pictures stay encoded: a follow-up may cut into one. Two cover a comparison.
    constexpr std::size_t kKeptPictures = 2;
    if (features_.size() > kKeptPictures) features_.resize(kKeptPictures);
    return result;
}

FinishReason Model::write(Reading& reading, const float* logits, const Request& request) {
    const SamplingOptions& s = request.sampling;
    StreamDecoder decoder(*tokenizer_);
    StopText stop(request.stop);
    std::vector<std::int32_t> ids;
    std::int64_t room = 0;
    FinishReason reason = FinishReason::kLength;
    bool intact = true;
    double step_seconds = 0.0;
    try {
        while (static_cast<std::int64_t>(ids.size()) < request.max_tokens) {
            if (!ids.empty()) {  // read the token chosen last
                if (room == 0) {
                    room = std::min(kAnswerRoom,
                                    request.max_tokens - static_cast<std::int64_t>(ids.size()));
                    reading.state.prepare(room);
                }
                --room;
                backend_->set_cancel_flag(step_seconds > kSlowStepSeconds ? &reading.cancel
                                                                          : nullptr);
                const Clock::time_point begin = Clock::now();
                intact = false;
                logits = decoder_->step(reading.state, ids.back());
                intact = true;
                step_seconds = seconds_since(begin);
                reading.prompt.keys.push_back(static_cast<std::uint64_t>(ids.back()));
            }
            reading.cancel.check();
            const std::int32_t id =
                backend_->sample({.logits = logits,
                                  .vocab = config().text.vocab_size,
                                  .suppressed = suppressed_.as<std::uint8_t>(),
                                  .history = ids.data(),
                                  .history_length = static_cast<std::int64_t>(ids.size()),
                                  .temperature = s.temperature,
                                  .top_k = s.top_k,
                                  .top_p = s.top_p,
                                  .min_p = s.min_p,
                                  .repetition_penalty = s.repetition_penalty,
                                  .presence_penalty = s.presence_penalty,
                                  .frequency_penalty = s.frequency_penalty,
                                  .seed = s.seed,
                                  .step = ids.size()});
            ids.push_back(id);
            reading.statistics.completion_tokens = static_cast<std::int64_t>(ids.size());
            if (id == tokenizer_->end_of_answer()) {
                reason = FinishReason::kStop;
                break;
            }
            // A special token other than the end is shown as it is called, not dropped.
            reading.text(stop.push(tokenizer_->is_special(id)
                                       ? decoder.finish() + std::string(tokenizer_->piece(id))
                                       : decoder.push(id)));
            if (stop.stopped()) {
                reason = FinishReason::kStop;
                break;
            }
        }
    } catch (const Error& error) {
        if (error.category() != Category::kCancelled) throw;
        reason = FinishReason::kCancelled;
    }
    backend_->set_cancel_flag(nullptr);
    reading.text(stop.push(decoder.finish()));
    reading.text(stop.finish());
    if (intact && reads_back(ids)) {
        auto keys = std::make_shared<const PositionKeys>(std::move(reading.prompt.keys));
        cache_->insert(std::move(keys), reading.state);
    }
    return reason;
}

bool Model::reads_back(std::span<const std::int32_t> ids) const {
    if (!ids.empty() && ids.back() == tokenizer_->end_of_answer()) ids = ids.first(ids.size() - 1);
    const std::vector<TokenId> again = tokenizer_->encode(tokenizer_->decode(ids));
    return std::equal(ids.begin(), ids.end(), again.begin(), again.end());
}

void Model::answer(const Request& request, const EventSink& sink, const CancelFlag& cancel) {
    check_request(request);
    checkpoint_->check_unchanged();
    Reading reading{
        .prompt = build_prompt(request.messages, request.tools, *format_, config().preprocess),
        .state = decoder_->new_state(),
        .sink = sink,
        .cancel = cancel};
    Statistics& statistics = reading.statistics;
    FinishReason reason = FinishReason::kCancelled;
    Clock::time_point written = Clock::now();
    try {
        if (std::optional<SequenceState> known = cache_->find(reading.prompt.keys)) {
            reading.state = std::move(*known);
            reading.reused = reading.state.position();
        }
        statistics.prompt_tokens = static_cast<std::int64_t>(reading.prompt.ids.size());
        statistics.reused_tokens = reading.reused;
        statistics.image_tokens = reading.prompt.image_tokens;
        cancel.check();
        backend_->set_cancel_flag(&cancel);
        const PrefillResult result = read(reading);
        backend_->set_cancel_flag(nullptr);
        // Weights that vanished under the mapping read as zeros: never answer from those.
        checkpoint_->check_unchanged();
        const auto keys = std::make_shared<const PositionKeys>(reading.prompt.keys);
        for (const SequenceState& state : result.checkpoints) cache_->insert(keys, state);
        statistics.prefill_seconds = seconds_since(reading.start);
        written = Clock::now();
        reason = write(reading, result.logits, request);
        statistics.decode_seconds = seconds_since(written);
        checkpoint_->check_unchanged();
    } catch (const Error& error) {
        backend_->set_cancel_flag(nullptr);
        if (error.category() != Category::kCancelled) throw;
        statistics.prefill_seconds = seconds_since(reading.start);
    } catch (...) {
        backend_->set_cancel_flag(nullptr);
        throw;
    }
    Event event;
    event.kind = Event::Kind::kFinished;
    event.reason = reason;
    event.statistics = statistics;
    if (sink) sink(event);
}

void Model::save_state(const std::filesystem::path& path) const {
    const PrefixCache::Entry* entry = cache_->latest();
    if (entry == nullptr)
        throw Error(Category::kInput, "there is nothing to save: no question was answered yet");
    const auto n = static_cast<std::size_t>(entry->state.position());
    write_state_file(path, info_.fingerprint, std::span(*entry->keys).first(n), entry->state);
}

std::int64_t Model::load_state(const std::filesystem::path& path) {
    SavedState saved =
        read_state_file(path, info_.fingerprint, decoder_->new_state().layout(), *backend_);
    const std::int64_t tokens = saved.state.position();
    cache_->insert(std::make_shared<const PositionKeys>(std::move(saved.keys)), saved.state);
    return tokens;
}

Engine::Speed Model::measure(std::int64_t prompt_tokens, std::int64_t decode_tokens) {
    if (prompt_tokens < 1 || decode_tokens < 0)
        throw Error(Category::kInput, "a measurement needs at least one prompt token");
    std::vector<std::int32_t> ids(static_cast<std::size_t>(prompt_tokens));
    std::uint64_t random = 0x9E3779B97F4A7C15U;  // fixed: the same ids at every run
    for (std::int32_t& id : ids) {
        random = random * 6364136223846793005U + 1442695040888963407U;
        id = static_cast<std::int32_t>((random >> 33) %
                                       static_cast<std::uint64_t>(config().text.vocab_size));
    }
    Engine::Speed speed{.prompt_tokens = prompt_tokens, .decode_tokens = decode_tokens};
    SequenceState state = decoder_->new_state();
    PrefillInput input;
    input.ids = ids;
    Clock::time_point begin = Clock::now();
    decoder_->prefill(state, input);
    speed.prefill_seconds = seconds_since(begin);
    state.prepare(decode_tokens);
    begin = Clock::now();
    for (std::int64_t i = 0; i < decode_tokens; ++i)
        decoder_->step(state, ids[static_cast<std::size_t>(i % prompt_tokens)]);
    backend_->synchronize();
    speed.decode_seconds = seconds_since(begin);
    return speed;
}

std::vector<float> Model::logits(const std::vector<Message>& messages) {
    const EventSink none;
    const CancelFlag never;
    Reading reading{.prompt = build_prompt(messages, {}, *format_, config().preprocess),
                    .state = decoder_->new_state(),
                    .sink = none,
                    .cancel = never};
    const PrefillResult result = read(reading);
    std::vector<float> out(static_cast<std::size_t>(config().text.vocab_size));
    backend_->copy_out(out.data(), result.logits, out.size() * sizeof(float));
    backend_->synchronize();
    return out;
}

}  // namespace longview::llm

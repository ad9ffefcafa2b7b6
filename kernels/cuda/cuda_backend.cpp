// The CUDA backend: device memory, one stream, the operator families of this folder, and the decode
// step as a recorded graph.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.h"
#include "kernels/runtime/cancel.h"
#include "kernels/runtime/cuda/check.h"
#include "kernels/runtime/cuda/handles.h"
#include "kernels/runtime/cuda/memory.h"
#include "kernels/runtime/cuda/nvtx.h"

namespace longview::kernels {
namespace {

using namespace cuda;

constexpr std::size_t kStagingBytes = std::size_t{32} << 20;
/// Expensive operators that may wait on the device while the next is queued: enough to keep it
/// busy, few enough that a cancelled read ends at once.
constexpr std::size_t kOperatorsInFlight = 2;

DeviceLimits limits_of(const cudaDeviceProp& p) {
    return {.sm_count = p.multiProcessorCount,
            .compute = 10 * p.major + p.minor,
            .shared_memory_bytes = p.sharedMemPerBlockOptin,
            .l2_bytes = static_cast<std::size_t>(p.l2CacheSize)};
}

/// Selects the device before any member makes something on it.
struct Selection {
    cudaDeviceProp properties{};
    explicit Selection(int device) {
        check(cudaGetDeviceProperties(&properties, device), "asking for the GPU's properties");
        if (properties.major < 8) {
            throw Error(Category::kUnsupported,
                        std::string(properties.name) + " has compute capability " +
                            std::to_string(properties.major) + "." +
                            std::to_string(properties.minor) +
                            "; 8.0 (Ampere) or newer is needed. Use --device cpu");
        }
        select_device(device);
    }
};

class CudaBackend final : public Backend {
  public:
    explicit CudaBackend(const CudaBackendOptions& options)
        : selection_(options.device),
          pool_(options.device, stream_, options.memory_limit_bytes),
          scratch_(pool_) {
        context_.stream = stream_.get();
        context_.device = limits_of(selection_.properties);
        context_.scratch = &scratch_;
        context_.cublas = &cublas_;
        step_input_ = pool_.allocate(sizeof(StepInput));
        sample_device_ = pool_.allocate(sizeof(SampleResult));
        sample_host_ = allocate_pinned(sizeof(SampleResult));
        stream_.synchronize();
    }
    ~CudaBackend() override { cudaStreamSynchronize(stream_.get()); }

    DeviceInfo device() const override {
        const cudaDeviceProp& p = selection_.properties;
        return {.kind = "cuda",
                .name = std::string(p.name) + " (compute " + std::to_string(p.major) + "." +
                        std::to_string(p.minor) + ")",
                .memory_total_bytes = pool_.total_bytes(),
                .memory_free_bytes = pool_.free_bytes()};
    }
    DType activation_dtype() const override { return DType::kBF16; }
    DType kv_dtype() const override { return DType::kBF16; }
    /// A layer of the real model takes about 25 ms for so many rows on the largest cards, and a
    /// smaller card should not take much longer: a cancel waits for it.
    std::int64_t preferred_chunk_tokens() const override {
        return context_.device.compute >= 90 && context_.device.sm_count >= 100 ? 16384 : 4096;
    }
    void set_cancel_flag(const CancelFlag* flag) override { cancel_ = flag; }

    Buffer allocate(std::size_t size_bytes) override {
        LONGVIEW_CHECK(context_.step == nullptr, "a decode step allocates nothing");
        return pool_.allocate(size_bytes);
    }
    void copy_in(void* to, const void* from, std::size_t n) override;
    void copy_out(void* to, const void* from, std::size_t n) override {
        if (n == 0) return;
        check(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToHost, stream_.get()), "copying");
        stream_.synchronize();
    }
    void copy(void* to, const void* from, std::size_t n) override {
        if (n == 0) return;
        check(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, stream_.get()), "copying");
    }
    void zero(void* to, std::size_t n) override {
        if (n == 0) return;
        check(cudaMemsetAsync(to, 0, n, stream_.get()), "clearing memory");
    }
    void synchronize() override { stream_.synchronize(); }

    Weight place(const WeightView& host) override {
        return std::move(place_together({&host, 1}).front());
    }
    std::vector<Weight> place_together(std::span<const WeightView> host) override;
    Buffer place_floats(const WeightView& host) override;

    void embed(const WeightView& table, std::span<const std::int32_t> ids, Matrix out) override;
    void gather_rows(ConstMatrix table, const float* fallback, std::span<const std::int32_t> index,
                     Matrix out) override;
    void step(const StepCall& call, const std::function<void()>& body) override;

    void norm_linear(const NormLinearParams& p) override {
        const Range range = begin("norm_linear");
        cuda::norm_linear(context_, p);
    }
    void linear_residual(const LinearResidualParams& p) override {
        const Range range = begin("linear_residual");
        cuda::linear_residual(context_, p);
    }
    void lightning_attention(const LightningParams& p) override {
        const Range range = begin("lightning_attention");
        cuda::lightning_attention(context_, p);
    }
    void rope_append(const RopeAppendParams& p) override {
        const Range range = begin("rope_append");
        cuda::rope_append(context_, p);
    }
    void softmax_attention(const SoftmaxAttentionParams& p) override {
        const Range range = begin("softmax_attention");
        cuda::softmax_attention(context_, p);
        if (p.q.rows > 1) throttle();
    }
    void route(const RouteParams& p) override {
        const Range range = begin("route");
        cuda::route(context_, p);
    }
    void experts(const ExpertsParams& p) override {
        const Range range = begin("experts");
        cuda::experts(context_, p);
        if (p.x.rows > 1) throttle();
    }
    std::int32_t sample(const SampleParams& p) override;
    void patch_embed(const PatchEmbedParams& p) override {
        const Range range = begin("patch_embed");
        cuda::patch_embed(context_, p);
    }
    void vit_attention(const VitAttentionParams& p) override {
        const Range range = begin("vit_attention");
        cuda::vit_attention(context_, p);
        throttle();
    }

  private:
    /// Before an operator: scratch is free again, a cancel is obeyed; names it for profilers.
    Range begin(const char* operator_name);
    void throttle();
    /// Host ids in device memory, valid for this operator.
    const std::int32_t* upload(std::span<const std::int32_t> ids);
    /// The values of `host` as another type in device memory.
    void place_as(DType dtype, void* to, const WeightView& host);

    Selection selection_;
    Stream stream_;
    DevicePool pool_;
    StreamScratch scratch_;
    CublasLt cublas_;
    Context context_;
    const CancelFlag* cancel_ = nullptr;

    std::array<Event, kOperatorsInFlight> in_flight_;
    std::size_t next_event_ = 0;

    Buffer step_input_;
    Graph step_graph_;
    std::uint64_t step_memory_ = 0;      // of the recorded step
    std::uint64_t step_generation_ = 0;  // of its scratch
    std::uint64_t warm_generation_ = ~std::uint64_t{0};

    Buffer sample_device_, sample_host_;
    std::array<Buffer, 2> staging_;
    std::array<Event, 2> staged_;
};

Range CudaBackend::begin(const char* operator_name) {
    scratch_.restart();
    if (cancel_ != nullptr && context_.step == nullptr) cancel_->check();
    return Range(operator_name);
}

/// Keeps the host a few expensive operators ahead of the device, not more, and looks at the cancel
/// flag while it waits.
void CudaBackend::throttle() {
    if (context_.step != nullptr) return;
    Event& event = in_flight_[next_event_];
    while (!event.done())
        if (cancel_ != nullptr) cancel_->check();
    event.record(stream_);
    next_event_ = (next_event_ + 1) % kOperatorsInFlight;
}

void CudaBackend::copy_in(void* to, const void* from, std::size_t n) {
    // From pageable memory; through two pinned blocks, so that the next part is read from the
    // source (perhaps a file) while the last one travels.
    if (n == 0) return;
    const auto* source = static_cast<const std::byte*>(from);
    auto* target = static_cast<std::byte*>(to);
    const std::size_t block = std::min(n, kStagingBytes);
    for (std::size_t i = 0, done = 0; done < n; ++i) {
        const std::size_t part = std::min(block, n - done);
        Buffer& staging = staging_[i % 2];
        Event& event = staged_[i % 2];
        while (!event.done()) {
        }
        if (staging.size_bytes() < part) {
            staging = Buffer();
            staging = allocate_pinned(part);
        }
        std::memcpy(staging.data(), source + done, part);
        check(cudaMemcpyAsync(target + done, staging.data(), part, cudaMemcpyHostToDevice,
                              stream_.get()),
              "copying to the GPU");
        event.record(stream_);
        done += part;
    }
}

void CudaBackend::place_as(DType dtype, void* to, const WeightView& host) {
    if (host.dtype == dtype) return copy_in(to, host.data, host.size_bytes());
    const Buffer raw = pool_.allocate(host.size_bytes());
    copy_in(raw.data(), host.data, host.size_bytes());
    convert(context_, raw.data(), host.dtype, to, dtype, host.rows * host.cols);
}

std::vector<Weight> CudaBackend::place_together(std::span<const WeightView> host) {
    const auto view_of = [](const WeightView& from, const void* data) {
        return WeightView{data, DType::kBF16, from.rows, from.cols};
    };
    std::size_t bytes = 0;
    for (const WeightView& from : host) bytes += view_of(from, nullptr).size_bytes();
    Buffer owner = pool_.allocate(bytes);
    std::vector<Weight> placed;
    auto* at = owner.as<std::byte>();
    for (const WeightView& from : host) {
        place_as(DType::kBF16, at, from);
        placed.push_back({view_of(from, at), {}});
        at += placed.back().view.size_bytes();
    }
    placed.front().owner = std::move(owner);
    return placed;
}

Buffer CudaBackend::place_floats(const WeightView& host) {
    Buffer out = pool_.allocate(static_cast<std::size_t>(host.rows * host.cols) * sizeof(float));
    place_as(DType::kF32, out.data(), host);
    return out;
}

const std::int32_t* CudaBackend::upload(std::span<const std::int32_t> ids) {
    auto* const device = scratch_.take_array<std::int32_t>(static_cast<std::int64_t>(ids.size()));
    copy_in(device, ids.data(), ids.size_bytes());
    return device;
}

void CudaBackend::embed(const WeightView& table, std::span<const std::int32_t> ids, Matrix out) {
    const Range range = begin("embed");
    LONGVIEW_CHECK(out.rows == static_cast<std::int64_t>(ids.size()),
                   "embed writes one table row for each id");
    for (const std::int32_t id : ids)
        LONGVIEW_CHECK(id >= 0 && id < table.rows, "token ids lie inside the table");
    if (ids.empty()) return;
    cuda::embed(context_, table, context_.step != nullptr ? nullptr : upload(ids), out);
}

void CudaBackend::gather_rows(ConstMatrix table, const float* fallback,
                              std::span<const std::int32_t> index, Matrix out) {
    const Range range = begin("gather_rows");
    LONGVIEW_CHECK(out.rows == static_cast<std::int64_t>(index.size()),
                   "gather_rows writes one row for each index");
    for (const std::int32_t i : index)
        LONGVIEW_CHECK(i < table.rows && (i >= 0 || fallback != nullptr),
                       "indices lie inside the table");
    if (index.empty()) return;
    cuda::gather_rows(context_, table, fallback, upload(index), out);
}

void CudaBackend::step(const StepCall& call, const std::function<void()>& body) {
    if (cancel_ != nullptr) cancel_->check();
    const Range range("step");
    set_step(context_, step_input_.as<StepInput>(), {.position = call.position, .id = call.id});
    const struct Recording {
        CudaBackend& backend;
        explicit Recording(CudaBackend& b) : backend(b) {
            backend.context_.step = backend.step_input_.as<StepInput>();
        }
        ~Recording() {
            backend.context_.step = nullptr;
            backend.scratch_.lock(false);
        }
    } recording(*this);
    const std::uint64_t generation = scratch_.generation();
    if (step_graph_.ready() && step_memory_ == call.memory && step_generation_ == generation) {
        step_graph_.launch(stream_);
        return;
    }
    if (warm_generation_ != generation) {
        // The first time directly: loads kernels and lets the scratch grow to what a step takes.
        body();
        scratch_.restart();
        warm_generation_ = scratch_.generation();
        return;
    }
    scratch_.lock(true);
    step_graph_.record(stream_, body);
    step_memory_ = call.memory;
    step_generation_ = generation;
    step_graph_.launch(stream_);
}

std::int32_t CudaBackend::sample(const SampleParams& p) {
    const Range range = begin("sample");
    SampleParams on_device = p;
    const bool penalised =
        p.repetition_penalty != 1.0F || p.presence_penalty != 0.0F || p.frequency_penalty != 0.0F;
    if (penalised && p.history_length > 0) {
        const std::span history(p.history, static_cast<std::size_t>(p.history_length));
        for (const std::int32_t id : history)
            LONGVIEW_CHECK(id >= 0 && id < p.vocab, "ids of the history are in the vocabulary");
        on_device.history = upload(history);
    } else {
        on_device.history_length = 0;
    }
    cuda::sample(context_, on_device, sample_device_.as<SampleResult>());
    copy_out(sample_host_.data(), sample_device_.data(), sizeof(SampleResult));
    const SampleResult result = *sample_host_.as<SampleResult>();
    if (result.broken >= 0)
        throw Error(Category::kDevice,
                    "the model's scores are broken: the score of token " +
                        std::to_string(result.broken) +
                        " is not a number; the weights are damaged or the device computed wrongly, "
                        "so check the model files and try again",
                    {{"token", std::to_string(result.broken)}});
    if (!std::isfinite(result.value))
        throw Error(Category::kBug, "internal error: no token may be chosen, all " +
                                        std::to_string(p.vocab) + " are suppressed");
    return result.id;
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
    return std::make_unique<CudaBackend>(options);
}

}  // namespace longview::kernels

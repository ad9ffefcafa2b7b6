// The CPU backend: host memory and the operator families of this folder.
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>

#include "kernels/backend.h"
#include "kernels/cpu/ops.h"

namespace longview::kernels {
namespace cpu {

Context::Context(ThreadPool& p) : pool(p), per_thread(static_cast<std::size_t>(p.size())) {}

namespace {
float* at_least(Buffer& buffer, std::size_t count) {
    if (buffer.size_bytes() < count * sizeof(float)) {
        buffer = Buffer();  // free before taking the larger one
        buffer = allocate_host(count * sizeof(float));
    }
    return buffer.as<float>();
}
}  // namespace

float* Context::scratch(int thread, std::size_t count) {
    return at_least(per_thread[static_cast<std::size_t>(thread)], count);
}

float* Context::shared_scratch(std::size_t count) {
    return at_least(shared, count);
}

}  // namespace cpu

namespace {

std::string cpu_model() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        const std::size_t colon = line.find(": ");
        if (line.starts_with("model name") && colon != std::string::npos)
            return line.substr(colon + 2);
    }
    return "CPU";
}

std::uint64_t available_memory_bytes() {
    std::ifstream info("/proc/meminfo");
    for (std::string key, unit; info >> key;) {
        std::uint64_t kib = 0;
        if (!(info >> kib)) break;
        std::getline(info, unit);
        if (key == "MemAvailable:") return kib * 1024;
    }
    return 0;
}

class CpuBackend final : public Backend {
  public:
    explicit CpuBackend(ThreadPool& pool) : context_(pool) {}

    DeviceInfo device() const override {
        DeviceInfo info;
        info.kind = "cpu";
        const int threads = context_.pool.size();
        info.name =
            cpu_model() + ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
        info.memory_total_bytes = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                                  static_cast<std::uint64_t>(sysconf(_SC_PAGE_SIZE));
        info.memory_free_bytes = available_memory_bytes();
        return info;
    }
    DType activation_dtype() const override { return DType::kF32; }
    DType kv_dtype() const override { return DType::kF32; }
    std::int64_t preferred_chunk_tokens() const override { return 512; }
    void set_cancel_flag(const CancelFlag* flag) override { context_.pool.set_cancel_flag(flag); }

    Buffer allocate(std::size_t size_bytes) override { return allocate_host(size_bytes); }
    void copy_in(void* to, const void* from, std::size_t n) override { copy(to, from, n); }
    void copy_out(void* to, const void* from, std::size_t n) override { copy(to, from, n); }
    void copy(void* to, const void* from, std::size_t n) override {
        if (n != 0) std::memcpy(to, from, n);
    }
    void zero(void* to, std::size_t n) override {
        if (n != 0) std::memset(to, 0, n);
    }
    void synchronize() override {}

    Weight place(const WeightView& host) override {
        if (reinterpret_cast<std::uintptr_t>(host.data) % size_of(host.dtype) == 0)
            return {host, {}};
        Buffer owner = allocate_host(host.size_bytes());
        std::memcpy(owner.data(), host.data, host.size_bytes());
        WeightView view = host;
        view.data = owner.data();
        return {view, std::move(owner)};
    }
    Buffer place_floats(const WeightView& host) override {
        Buffer out = allocate_host(static_cast<std::size_t>(host.rows * host.cols) * sizeof(float));
        cpu::convert_to_f32(context_, host, out.as<float>());
        return out;
    }

    void embed(const WeightView& table, std::span<const std::int32_t> ids, Matrix out) override {
        cpu::embed(context_, table, ids, out);
    }
    void gather_rows(ConstMatrix table, const float* fallback, std::span<const std::int32_t> index,
                     Matrix out) override {
        cpu::gather_rows(context_, table, fallback, index, out);
    }
    void step(const StepCall&, const std::function<void()>& body) override { body(); }
    void norm_linear(const NormLinearParams& p) override { cpu::norm_linear(context_, p); }
    void linear_residual(const LinearResidualParams& p) override {
        cpu::linear_residual(context_, p);
    }
    void lightning_attention(const LightningParams& p) override {
        cpu::lightning_attention(context_, p);
    }
    void rope_append(const RopeAppendParams& p) override { cpu::rope_append(context_, p); }
    void softmax_attention(const SoftmaxAttentionParams& p) override {
        cpu::softmax_attention(context_, p);
    }
    void route(const RouteParams& p) override { cpu::route(context_, p); }
    void experts(const ExpertsParams& p) override { cpu::experts(context_, p); }
    std::int32_t sample(const SampleParams& p) override { return cpu::sample(context_, p); }
    void patch_embed(const PatchEmbedParams& p) override { cpu::patch_embed(context_, p); }
    void vit_attention(const VitAttentionParams& p) override { cpu::vit_attention(context_, p); }

  private:
    cpu::Context context_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool) {
    return std::make_unique<CpuBackend>(pool);
}

}  // namespace longview::kernels

// Timing on a GPU: CUDA events, warm-up, medians, buffers that rotate beyond the L2 cache, and the
// device's own ceilings measured in the same run.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace longview::kernels::bench {

/// Median seconds of one call of `work(i)`, i = 0, 1, ...: `work` should use the i-th of several
/// buffer sets, so that together they exceed the L2 cache. Short work is recorded into a graph of
/// several calls first, so that launch gaps of the host do not count.
double median_seconds(cudaStream_t stream, const std::function<void(int)>& work,
                      double budget_seconds = 0.15);

struct Ceilings {
    double copy_bytes_per_second = 0.0;  // read + written, device to device
    double read_bytes_per_second = 0.0;
    double bf16_flops = 0.0;  // cuBLASLt, 8192^3, random data
};
/// Measured now, on this device.
Ceilings measure_ceilings(cudaStream_t stream);

/// Sets of buffers needed for `bytes_each` so that a rotation passes `minimum` bytes (default: four
/// times the L2 cache), at least 2.
int rotation(std::size_t bytes_each, std::size_t minimum = 0);

/// Fills device memory with normally distributed bf16 or fp32 values times `scale`.
void fill_random_bf16(void* data, std::size_t count, float scale, std::uint64_t seed,
                      cudaStream_t stream);
void fill_random_f32(float* data, std::size_t count, float scale, std::uint64_t seed,
                     cudaStream_t stream);

/// One line of the table and of the JSON file: what, size, seconds, TB/s, TFLOP/s, share of the
/// limit (the larger of bytes over the read ceiling and operations over the matrix ceiling).
class Report {
  public:
    Report(std::string family, const Ceilings& ceilings, std::string json_path);
    ~Report();  // writes the JSON file
    void add(const std::string& name, double seconds, double bytes, double flops);

  private:
    std::string family_, json_path_, json_;
    Ceilings ceilings_;
};

}  // namespace longview::kernels::bench

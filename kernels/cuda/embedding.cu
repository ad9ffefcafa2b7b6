// Rows taken from tables, and changes of type.
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/ops.h"

namespace longview::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__device__ float as_float(float v) {
    return v;
}
__device__ float as_float(__half v) {
    return __half2float(v);
}
__device__ float as_float(bf16 v) {
    return __bfloat162float(v);
}
template <typename T>
__device__ T from_float(float v);
template <>
__device__ float from_float<float>(float v) {
    return v;
}
template <>
__device__ bf16 from_float<bf16>(float v) {
    return __float2bfloat16_rn(v);
}

/// Copies a row in 16-byte pieces where both ends allow it. The types are equal.
template <typename T>
__device__ bool copy_row_wide(const T* from, T* to, std::int64_t cols) {
    const auto low = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to) |
                     static_cast<std::uintptr_t>(cols * static_cast<std::int64_t>(sizeof(T)));
    if (low % 16 != 0) return false;
    const std::int64_t pieces = cols * static_cast<std::int64_t>(sizeof(T)) / 16;
    for (std::int64_t i = threadIdx.x; i < pieces; i += blockDim.x)
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    return true;
}

template <typename From, typename To>
__device__ void copy_row(const From* from, To* to, std::int64_t cols) {
    if constexpr (sizeof(From) == sizeof(To) && std::is_same_v<From, To>)
        if (copy_row_wide(from, to, cols)) return;
    for (std::int64_t i = threadIdx.x; i < cols; i += blockDim.x)
        to[i] = from_float<To>(as_float(from[i]));
}

template <typename From, typename To>
__global__ void embed_kernel(const From* table, std::int64_t cols, const std::int32_t* ids,
                             const StepInput* step, To* out, std::int64_t stride) {
    const std::int64_t row = blockIdx.x;
    const std::int64_t id = ids == nullptr ? step->id : ids[row];
    copy_row(table + id * cols, out + row * stride, cols);
}

template <typename T>
__global__ void gather_kernel(const T* table, std::int64_t table_stride, const float* fallback,
                              const std::int32_t* index, T* out, std::int64_t out_stride,
                              std::int64_t cols) {
    const std::int64_t row = blockIdx.x;
    const std::int64_t from = index[row];
    if (from >= 0) {
        copy_row(table + from * table_stride, out + row * out_stride, cols);
    } else {
        copy_row(fallback, out + row * out_stride, cols);
    }
}

template <typename From, typename To>
__global__ void convert_kernel(const From* from, To* to, std::int64_t count) {
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < count; i += step)
        to[i] = from_float<To>(as_float(from[i]));
}

/// Calls f with a null pointer of the element type.
template <typename F>
void with_type(DType dtype, const F& f) {
    switch (dtype) {
        case DType::kF32:
            return f(static_cast<const float*>(nullptr));
        case DType::kF16:
            return f(static_cast<const __half*>(nullptr));
        case DType::kBF16:
            return f(static_cast<const bf16*>(nullptr));
    }
}
template <typename F>
void with_activation_type(DType dtype, const F& f) {
    LONGVIEW_CHECK(dtype != DType::kF16, "activations are bf16 or floats");
    if (dtype == DType::kF32) return f(static_cast<float*>(nullptr));
    f(static_cast<bf16*>(nullptr));
}

}  // namespace

void embed(const Context& c, const WeightView& table, const std::int32_t* ids, Matrix out) {
    LONGVIEW_CHECK(out.cols == table.cols, "embed writes rows of the table");
    LONGVIEW_CHECK(ids != nullptr || (c.step != nullptr && out.rows == 1),
                   "the id of a step is a single one");
    if (out.rows == 0) return;
    const int threads =
        static_cast<int>(std::min<std::int64_t>(kThreads, (out.cols + 31) / 32 * 32));
    with_type(table.dtype, [&](auto* from) {
        using From = std::remove_cv_t<std::remove_pointer_t<decltype(from)>>;
        with_activation_type(out.dtype, [&](auto* to) {
            using To = std::remove_pointer_t<decltype(to)>;
            embed_kernel<<<static_cast<unsigned>(out.rows), threads, 0, c.stream>>>(
                static_cast<const From*>(table.data), table.cols, ids, c.step,
                static_cast<To*>(out.data), out.stride);
        });
    });
    check_launch("embed");
}

void gather_rows(const Context& c, ConstMatrix table, const float* fallback,
                 const std::int32_t* index, Matrix out) {
    LONGVIEW_CHECK(table.cols == out.cols && table.dtype == out.dtype,
                   "gathered rows lie as those of the table");
    if (out.rows == 0) return;
    with_activation_type(out.dtype, [&](auto* element) {
        using T = std::remove_pointer_t<decltype(element)>;
        gather_kernel<<<static_cast<unsigned>(out.rows), kThreads, 0, c.stream>>>(
            static_cast<const T*>(table.data), table.stride, fallback, index,
            static_cast<T*>(out.data), out.stride, out.cols);
    });
    check_launch("gather_rows");
}

void convert(const Context& c, const void* from, DType from_dtype, void* to, DType to_dtype,
             std::int64_t count) {
    if (count == 0) return;
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(
        (count + kThreads - 1) / kThreads, std::int64_t{16} * c.device.sm_count));
    with_type(from_dtype, [&](auto* f) {
        using From = std::remove_cv_t<std::remove_pointer_t<decltype(f)>>;
        with_activation_type(to_dtype, [&](auto* t) {
            using To = std::remove_pointer_t<decltype(t)>;
            convert_kernel<<<blocks, kThreads, 0, c.stream>>>(static_cast<const From*>(from),
                                                              static_cast<To*>(to), count);
        });
    });
    check_launch("convert");
}

namespace {
__global__ void set_step_kernel(StepInput* to, StepInput value) {
    *to = value;
}
}  // namespace

void set_step(const Context& c, StepInput* to, const StepInput& value) {
    set_step_kernel<<<1, 1, 0, c.stream>>>(to, value);
    check_launch("set_step");
}

}  // namespace longview::kernels::cuda

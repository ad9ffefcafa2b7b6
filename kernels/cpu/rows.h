// Element-wise work on one row, vectorised: what operators do before and after a matrix product.
// Used by the operator families of this folder, from any thread. An element's result depends on
// that element's inputs alone (norms: on its row), so it is the same in every blocking.
// `out` may be any of the inputs. n is a number of elements and may be 0.
#pragma once

#include <cstdint>

#include "kernels/backend.h"

namespace longview::kernels::cpu {

/// out = from, as floats; `from` need not be aligned.
void convert_row(const void* from, DType dtype, std::int64_t n, float* out);

/// out = gate * (x / sqrt(mean(x^2) + eps) * gain); gate null: 1. Sums in float32.
void rms_norm_row(const float* x, const float* gain, const float* gate, float eps, std::int64_t n,
                  float* out);

/// out = (x - mean) / sqrt(var + eps) * gain + bias; bias null: 0. Sums in float32, two passes.
void layer_norm_row(const float* x, const float* gain, const float* bias, float eps, std::int64_t n,
                    float* out);

/// out = a * b
void multiply_row(const float* a, const float* b, std::int64_t n, float* out);

/// out = activation(x + bias); bias null: 0. Relative error below 1e-6.
void activate_row(const float* x, const float* bias, Activation activation, std::int64_t n,
                  float* out);

/// out = alpha * skip + beta * (x + bias); bias null: 0.
void residual_row(const float* x, const float* bias, const float* skip, float alpha, float beta,
                  std::int64_t n, float* out);

/// out = silu(gate) * up
void silu_product_row(const float* gate, const float* up, std::int64_t n, float* out);

/// out = alpha * skip + beta * (weights[0] * y[0] + weights[1] * y[1] + ...), in this order.
void combine_row(const float* skip, const float* const* y, const float* weights, int count,
                 float alpha, float beta, std::int64_t n, float* out);

/// out = exp((x - largest) * scale) for x <= largest; -inf gives 0.
void exp_row(const float* x, float largest, float scale, std::int64_t n, float* out);

}  // namespace longview::kernels::cpu

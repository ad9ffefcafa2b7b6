// Placing named tensors where the backend computes with them. Private to vision/encoder.
#pragma once

#include <initializer_list>
#include <string>

#include "kernels/backend.h"
#include "kernels/runtime/weight_source.h"

namespace longview::vision {

/// Reads from `source` under a common prefix; every shape is checked against the configuration's.
/// Errors: kInput naming the tensor when it is missing or shaped otherwise.
class WeightReader {
  public:
    WeightReader(kernels::Backend& backend, const WeightSource& source, std::string prefix)
        : backend_(backend), source_(source), prefix_(std::move(prefix)) {}

    WeightReader below(const std::string& name) const {
        return {backend_, source_, prefix_ + name};
    }
    /// A matrix [shape[0], product of the others] as stored.
    kernels::Weight matrix(const std::string& name,
                           std::initializer_list<std::int64_t> shape) const {
        return backend_.place(find(name, shape).as_weight());
    }
    /// Values as fp32: biases, gains and embeddings are small, and precision is cheap there.
    Buffer floats(const std::string& name, std::initializer_list<std::int64_t> shape) const {
        return backend_.place_floats(find(name, shape).as_weight());
    }

  private:
    HostTensor find(const std::string& name, std::initializer_list<std::int64_t> shape) const;

    kernels::Backend& backend_;
    const WeightSource& source_;
    std::string prefix_;
};

/// y = W x + b
struct Linear {
    Linear(const WeightReader& reader, std::int64_t out, std::int64_t in)
        : weight(reader.matrix("weight", {out, in})), bias(reader.floats("bias", {out})) {}

    kernels::Weight weight;  // [out, in]
    Buffer bias;             // [out]
};

struct LayerNorm {
    LayerNorm(const WeightReader& reader, std::int64_t width)
        : gain(reader.floats("weight", {width})), bias(reader.floats("bias", {width})) {}

    Buffer gain;  // [width]
    Buffer bias;  // [width]
};

}  // namespace longview::vision

// What names a model in saved states. Private to llm/checkpoint.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "kernels/runtime/weight_source.h"
#include "llm/checkpoint/config.h"

namespace longview::llm {

/// A hash (XXH3, 128 bits; not cryptographic) over the configuration's values, and for all
/// tensors in the order of their names over name, type and shape; of up to 1024 of them, evenly
/// chosen, also over 4 KiB from the middle of the data. Does not depend on how the tensors are
/// spread over files.
class Fingerprint {
  public:
    Fingerprint(const ModelConfig& config, std::size_t tensor_count);
    ~Fingerprint();

    void add(std::string_view name, const HostTensor& tensor);
    /// 32 hex digits.
    std::string hex() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace longview::llm

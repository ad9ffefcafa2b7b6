#include "vision/encoder/weights.h"

#include <algorithm>

namespace longview::vision {

namespace {

std::string describe(const std::int64_t* shape, std::size_t rank) {
    std::string text = "[";
    for (std::size_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return text + "]";
}

}  // namespace

HostTensor WeightReader::find(const std::string& name,
                              std::initializer_list<std::int64_t> shape) const {
    const std::string full = prefix_ + name;
    const HostTensor tensor = source_.tensor(full);
    const auto rank = static_cast<std::size_t>(tensor.rank);
    if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(),
                    tensor.shape.begin() + static_cast<std::ptrdiff_t>(rank))) {
        throw Error(Category::kInput,
                    "tensor " + full + " has shape " + describe(tensor.shape.data(), rank) +
                        ", but config.json asks for " + describe(shape.begin(), shape.size()) +
                        "; the checkpoint's files do not belong together",
                    {{"tensor", full}});
    }
    return tensor;
}

}  // namespace longview::vision

#include "kernels/runtime/error.h"

namespace longview {

const char* category_name(Category category) {
    switch (category) {
        case Category::kInput:
            return "input";
        case Category::kNotFound:
            return "not found";
        case Category::kUnsupported:
            return "unsupported";
        case Category::kMemory:
            return "memory";
        case Category::kIo:
            return "io";
        case Category::kDevice:
            return "device";
        case Category::kCancelled:
            return "cancelled";
        case Category::kBug:
            return "bug";
    }
    return "bug";
}

void check_failed(const char* condition, const char* why, const char* file, int line) {
    throw Error(Category::kBug,
                std::string("internal error: ") + why + " (" + condition + " at " + file + ":" +
                    std::to_string(line) + ")",
                {{"file", file}, {"line", std::to_string(line)}});
}

}  // namespace longview

#include "app/core/resources.h"

#include <cstdlib>
#include <system_error>

#include "kernels/runtime/error.h"

namespace longview::app {

namespace fs = std::filesystem;

fs::path default_model_folder() {
    const char* named = std::getenv("LONGVIEW_MODEL");
    // Taken as it is: when it is wrong, opening it says what is missing there.
    if (named != nullptr && *named != '\0') return named;

    std::error_code failed;
    const fs::path program = fs::read_symlink("/proc/self/exe", failed);
    const fs::path installed =
        (program.parent_path() / ".." / "share" / "longview" / "demo-model").lexically_normal();
    if (!failed && fs::is_directory(installed, failed)) return installed;

    const fs::path source = fs::path(LONGVIEW_SOURCE_RESOURCES) / "demo-model";
    if (fs::is_directory(source, failed)) return source;
    throw Error(Category::kNotFound, "no model was named and the demo model is neither in " +
                                         installed.string() + " nor in " + source.string() +
                                         ". Name one with --model or LONGVIEW_MODEL.");
}

}  // namespace longview::app

// Where the files that come with the program lie. Used by app/cli.
#pragma once

#include <filesystem>

namespace longview::app {

/// The model used when none is named: the environment variable LONGVIEW_MODEL, else the demo model
/// installed beside the program (its folder/../share/longview/demo-model), else the one in the
/// source tree that the program was built from.
/// Errors: kNotFound naming all three when there is none.
std::filesystem::path default_model_folder();

}  // namespace longview::app

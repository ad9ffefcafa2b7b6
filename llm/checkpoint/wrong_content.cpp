#include "llm/checkpoint/wrong_content.h"

#include <algorithm>
#include <cctype>

namespace longview::llm {
namespace {

bool starts_with_ignoring_case(std::string_view text, std::string_view lower_case) {
    return text.size() >= lower_case.size() &&
           std::equal(lower_case.begin(), lower_case.end(), text.begin(), [](char want, char got) {
               return std::tolower(static_cast<unsigned char>(got)) == want;
           });
}

}  // namespace

std::string name_wrong_content(std::string_view start_of_file) {
    if (start_of_file.empty()) {
        return "is empty: the download did not finish; download the file again";
    }
    if (start_of_file.starts_with("version https://git-lfs")) {
        return "is a Git LFS pointer, not the file itself: run 'git lfs pull' in the folder, or "
               "download the file again";
    }
    if (start_of_file.starts_with("GGUF")) {
        return "is a GGUF file; a folder in the Hugging Face layout is needed";
    }
    if (start_of_file.starts_with("PK\x03\x04")) {
        return "is a zip file (a PyTorch checkpoint?); safetensors are needed";
    }
    const auto text = start_of_file.substr(
        std::min(start_of_file.find_first_not_of(" \t\r\n"), start_of_file.size()));
    for (const std::string_view tag : {"<!doctype", "<html", "<head", "<?xml"}) {
        if (starts_with_ignoring_case(text, tag)) {
            return "is a web page, not the file itself: the download gave an error page; "
                   "download the file again";
        }
    }
    return {};
}

}  // namespace longview::llm

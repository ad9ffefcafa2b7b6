#include "app/cli/question.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include "app/cli/command.h"
#include "app/cli/terminal.h"
#include "app/core/files.h"
#include "app/core/text.h"
#include "app/documents/text_document.h"
#include "kernels/runtime/error.h"
#include "vision/image/image.h"

namespace longview::app {

void attach_picture(Attachments& attachments, const std::string& path) {
    attachments.pictures.push_back(llm::image_part(vision::load_image(path)));
}

void attach_document(Attachments& attachments, const std::string& path) {
    attachments.documents.push_back(llm::text_part(document_prompt(read_text_document(path))));
}

llm::Message user_message(Attachments attachments, const std::string& question) {
    llm::Message message;
    message.role = llm::Role::kUser;
    message.parts = std::move(attachments.pictures);
    for (llm::Part& document : attachments.documents) message.parts.push_back(std::move(document));
    message.parts.push_back(llm::text_part(question));
    return message;
}

std::string read_question(const std::string& argument) {
    std::string question = argument;
    if (argument == "-") {
        if (stdin_is_terminal()) note("Type the question; Ctrl-D on an empty line ends it.");
        question = read_standard_input();
        if (question.ends_with('\n')) question.pop_back();
        if (question.ends_with('\r')) question.pop_back();
    }
    if (is_blank(question)) throw UsageError("the question is empty");
    require_utf8(question, "the question");
    return question;
}

std::string read_standard_input() {
    std::string text;
    std::array<char, 65536> block{};
    for (;;) {
        const ssize_t got = ::read(STDIN_FILENO, block.data(), block.size());
        if (got < 0) {
            if (errno == EINTR) continue;
            throw Error(Category::kIo, "cannot read standard input: " +
                                           std::generic_category().message(errno) + ".");
        }
        if (got == 0) return text;
        text.append(block.data(), static_cast<std::size_t>(got));
        if (text.size() > kMaxDocumentBytes) {
            throw Error(Category::kInput, "standard input is longer than the limit of " +
                                              human_bytes(kMaxDocumentBytes) + ".");
        }
    }
}

}  // namespace longview::app

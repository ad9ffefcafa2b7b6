// A user's message from a question and the files that go with it.
#pragma once

#include <string>
#include <vector>

#include "llm/engine/engine.h"

namespace longview::app {

/// Pictures and documents waiting for their question.
struct Attachments {
    std::vector<llm::Part> pictures;
    std::vector<llm::Part> documents;  // as document_prompt

    bool empty() const { return pictures.empty() && documents.empty(); }
};

/// Errors: those of load_image.
void attach_picture(Attachments& attachments, const std::string& path);
/// Errors: those of read_text_document.
void attach_document(Attachments& attachments, const std::string& path);

/// Pictures first, then each document, then the question: parts of their own, so that the engine
/// can keep what it read of each.
llm::Message user_message(Attachments attachments, const std::string& question);

/// The question, or standard input for "-" (at most 64 MiB; one line end at its end is not part of
/// it). Throws UsageError when nothing is asked. Errors: kInput when it is not UTF-8, kIo.
std::string read_question(const std::string& argument);

/// All of standard input. Errors: kInput over 64 MiB, kIo.
std::string read_standard_input();

}  // namespace longview::app

// Ends an answer at given texts, which may arrive in pieces over several tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace longview::llm {

class StopText {
  public:
    explicit StopText(std::vector<std::string> stops);

    /// Adds text and returns what is certain not to belong to a stop text.
    std::string push(std::string_view text);
    /// True once a stop text came; nothing of it or after it is returned.
    bool stopped() const { return stopped_; }
    /// What was held back, when the answer ends otherwise.
    std::string finish();

  private:
    std::vector<std::string> stops_;
    std::string held_;
    bool stopped_ = false;
};

}  // namespace longview::llm

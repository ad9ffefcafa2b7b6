// Base64 (RFC 4648, section 4) for pictures inside JSON.
#pragma once

#include <string>
#include <string_view>

namespace longview::app {

std::string base64_encode(std::string_view bytes);

/// Strict: padding needed, no white space, unused bits zero. Errors: kInput.
std::string base64_decode(std::string_view text);

}  // namespace longview::app

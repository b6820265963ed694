// The chat page, page/index.html, put into the binary when it is built.
#pragma once

#include "absl/strings/string_view.h"

namespace mneme::gateway {

// Returns the page's HTML.
absl::string_view ChatPage();

}  // namespace mneme::gateway

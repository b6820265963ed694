// Names of responses: which committed turn of which session one is, in a form that clients have no
// reason to look into. Whose session it is comes from the caller's key alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace mneme::gateway {

struct ResponseId {
  std::string session_id;
  uint64_t version = 0;  // of the session after the turn
};

// Returns "resp_…".
std::string FormatResponseId(const ResponseId& id);

// Returns nothing for what FormatResponseId did not make; a mistyped name is one.
std::optional<ResponseId> ParseResponseId(absl::string_view text);

}  // namespace mneme::gateway

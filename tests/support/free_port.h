// Ports for servers that cannot choose one themselves.
#pragma once

#include "absl/status/statusor.h"

namespace mneme::testing {

// Returns a port of 127.0.0.1 that nobody listens on now. Another process may take it before the
// caller does: whoever starts a server on it tries again with another one.
absl::StatusOr<int> FreePort();

}  // namespace mneme::testing

// What carries bytes to and from a server: Socket, or TlsSocket on top of it.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace mneme::redis {

// An open connection whose every call ends by a deadline. Used by one thread at a time. Errors:
// DEADLINE_EXCEEDED: too late; UNAVAILABLE: reset or closed by the peer; FAILED_PRECONDITION: the
// peer wants other settings. After an error the connection is of no more use.
class Transport {
 public:
  virtual ~Transport() = default;

  // Writes all pieces, one after the other.
  virtual absl::Status Write(absl::Span<const absl::string_view> pieces, absl::Time deadline) = 0;
  // Returns how many bytes it read, at least one.
  virtual absl::StatusOr<size_t> Read(char* buffer, size_t size, absl::Time deadline) = 0;
  // Returns whether the connection is open and nothing has arrived on it.
  virtual bool IsQuiet() = 0;
};

}  // namespace mneme::redis

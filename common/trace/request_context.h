// What accompanies a request through every hop: an id for logs, the W3C trace context, the tenant.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace mneme::trace {

// Metadata keys, the same in gRPC and HTTP.
inline constexpr absl::string_view kRequestIdKey = "x-request-id";
inline constexpr absl::string_view kTraceparentKey = "traceparent";

// A value; copies are independent.
struct RequestContext {
  std::string request_id;   // [A-Za-z0-9_.:-]{1,128}
  std::string traceparent;  // "00-<32 hex>-<16 hex>-<2 hex>"
};

// Returns `n` random lower-case hexadecimal digits. Thread-safe.
std::string RandomHex(int n);

// Returns a context from what a caller sent; what is missing or malformed is made anew. The trace
// id is kept and this hop gets a span id of its own.
RequestContext ContextFrom(absl::string_view request_id, absl::string_view traceparent);

// Returns whether `text` is a version-00 traceparent with a trace id and span id that are not zero.
bool IsTraceparent(absl::string_view text);

// Returns whether `text` may be used as a request or session id.
bool IsIdentifier(absl::string_view text);

}  // namespace mneme::trace

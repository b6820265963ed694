// Parses JSON that comes with a model: nothing throws, nesting is bounded and a repeated key is an
// error (a second "shape" of a tensor must not silently win).
#pragma once

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme::weights {

// Returns the document. INVALID_ARGUMENT: not JSON, invalid UTF-8, a number out of range, a
// repeated key or more than `max_depth` nested values; the message names the byte offset or the
// key.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text, int max_depth);

// Reads a whole text file of at most `max_bytes`. NOT_FOUND: no such file.
absl::StatusOr<std::string> ReadTextFile(absl::string_view path, uint64_t max_bytes);

}  // namespace mneme::weights

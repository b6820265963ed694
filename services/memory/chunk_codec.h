// How a chunk's payload is packed before it is sealed into a file of the disk tier: Zstandard (RFC
// 8878) at its fastest level, or as it is where that gains nothing.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme::memory {

// Returns one byte that says how, and the packed payload.
std::string PackChunk(absl::string_view payload);

// Returns the payload again. DATA_LOSS: PackChunk did not make this, or it holds more than
// `max_bytes`.
absl::StatusOr<std::string> UnpackChunk(absl::string_view packed, size_t max_bytes);

}  // namespace mneme::memory

// The members of an uncompressed zip archive, as torch.save writes them: sizes and offsets from the
// central directory (zip64 included), the bytes in place.
#pragma once

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace mneme::weights {

using ZipMembers = absl::flat_hash_map<std::string, absl::Span<const uint8_t>>;

// Returns the members by name; they are views into `bytes`. INVALID_ARGUMENT: not a zip archive, a
// compressed or encrypted member, a name twice, or anything outside the bytes.
absl::StatusOr<ZipMembers> ReadZip(absl::Span<const uint8_t> bytes);

}  // namespace mneme::weights

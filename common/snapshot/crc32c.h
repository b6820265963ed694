// CRC-32C (Castagnoli), as RFC 3720 appendix B.4 has it: against errors between executor and store.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme::snapshot {

// Uses the processor's own instruction where it has one (SSE4.2).
uint32_t Crc32c(absl::string_view bytes);

// The same without it.
uint32_t Crc32cPortable(absl::string_view bytes);

}  // namespace mneme::snapshot

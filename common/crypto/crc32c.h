// The checksum CRC-32C (polynomial 0x1EDC6F41, as in iSCSI): against errors, not against people.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace mneme::crypto {

// Returns the checksum of `bytes`, by the processor's own instruction. `previous` is that of the
// bytes before them, so that a long text can be summed in pieces.
uint32_t Crc32c(absl::string_view bytes, uint32_t previous = 0);

}  // namespace mneme::crypto

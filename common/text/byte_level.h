// The alphabet of byte-level BPE: GPT-2 writes every byte as one printable character.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace mneme::text {

// Returns the bytes that a token's text stands for. A text with characters outside the alphabet
// (an added token) stands for itself.
std::string BytesOfByteLevel(absl::string_view token);

// The inverse: writes any bytes in the alphabet.
std::string ToByteLevel(absl::string_view bytes);

}  // namespace mneme::text

// Shortens prompts that are longer than what an evaluation allows, as LongBench does: the
// instructions at both ends stay.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/dataset/text_encoder.h"

namespace mneme::benchmarks {

// Returns `prompt` where it has at most `max_length` tokens, bos among them; else the texts of its
// first and last max_length / 2 tokens (rounded down), special tokens left out. To be called before
// a chat template is applied. INVALID_ARGUMENT: a max_length below 2.
absl::StatusOr<std::string> TruncateMiddle(absl::string_view prompt, int64_t max_length,
                                           const dataset::TextEncoder& encoder);

}  // namespace mneme::benchmarks

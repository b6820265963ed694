// Cuts a document into overlapping chunks for the perplexity of a sliding window: each chunk is
// read whole, and of it only the tokens that no earlier chunk covered are scored. As the published
// implementation of Activation Beacon (arXiv 2401.03462) evaluates language modelling.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/dataset/text_encoder.h"

namespace mneme::dataset {

// Lengths in tokens.
struct WindowOptions {
  int64_t max_length = 4096;  // of a chunk, bos included
  // From one chunk's start to the next one's; 0: one chunk. Where it is more than a chunk holds,
  // the tokens between are in none.
  int64_t stride = 2048;
  int64_t min_length = 0;  // shorter documents have no chunk; bos does not count
};

struct LabelledChunk {
  std::vector<int32_t> input_ids;  // [T]
  std::vector<int32_t> labels;     // [T], not shifted; kIgnoredLabel where nothing is scored

  bool operator==(const LabelledChunk&) const = default;
};

// Returns the chunks of a document, in order; none for an empty one. `ids` are without special
// tokens; `bos`, if any, goes before every chunk. INVALID_ARGUMENT: a negative stride, or a
// max_length that leaves no place for a token.
absl::StatusOr<std::vector<LabelledChunk>> CutWindows(absl::Span<const int32_t> ids,
                                                      std::optional<int32_t> bos,
                                                      const WindowOptions& options);

// The same from a text, with the encoder's bos.
absl::StatusOr<std::vector<LabelledChunk>> EncodeWindows(absl::string_view text,
                                                         const TextEncoder& encoder,
                                                         const WindowOptions& options);

}  // namespace mneme::dataset

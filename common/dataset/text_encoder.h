// What this folder and common/benchmarks need of a tokenizer. A service puts its model's tokenizer
// behind it, a golden test the toy tokenizer of its files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/dataset/conversation.h"

namespace mneme::dataset {

// Implementations are immutable and thread-safe.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;

  // Returns ids, each in [0, V). Special tokens written out in `text` are recognised;
  // `add_special_tokens` adds the tokenizer's own around it (mostly: bos in front).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      bool add_special_tokens) const = 0;
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                             bool skip_special_tokens) const = 0;

  // The end-of-sequence token, written out.
  virtual std::string eos_text() const = 0;
  // The id that Encode puts in front with add_special_tokens; none where it adds no bos.
  virtual std::optional<int32_t> leading_bos() const = 0;

  // Renders with the tokenizer's own template, special tokens written out.
  virtual absl::StatusOr<std::string> RenderOwnTemplate(const Conversation&) const {
    return absl::FailedPreconditionError(
        "the tokenizer has no chat template of its own: use no, mistral, llama-2, llama-3 or qwen");
  }
};

}  // namespace mneme::dataset

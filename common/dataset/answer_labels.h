// Which tokens of a rendered conversation are trained on: the assistant's answers, and the token
// that ends each. The rule is that of the published implementation of Activation Beacon (arXiv
// 2401.03462). It counts the tokens of pieces that are tokenised apart, so it is exact where a
// tokenizer merges nothing across their borders; template markers within a message count as the
// template's own.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/dataset/text_encoder.h"

namespace mneme::dataset {

// Marks a position that no loss is computed for.
inline constexpr int32_t kIgnoredLabel = -100;

// How a template marks turns.
struct TurnMarks {
  absl::string_view turn_end;      // T: from an answer to the next user's text
  absl::string_view answer_start;  // R: from a user's text to the answer
  int64_t num_leading = 0;         // B: tokens before the text (bos)
  int64_t left_offset = 0;  // o: by how many tokens masks begin earlier than counted; 0 or less
};

// Returns the labels of `input_ids` [T], which `text` was tokenised to.
absl::StatusOr<std::vector<int32_t>> AnswerLabels(const TurnMarks& marks, absl::string_view text,
                                                  absl::Span<const int32_t> input_ids,
                                                  const TextEncoder& encoder);

// The rule of the template `no`: the last tokens, as many as `answer` (with the end of sequence)
// has by itself; "" for none.
absl::StatusOr<std::vector<int32_t>> LastTokensLabels(absl::string_view answer,
                                                      absl::Span<const int32_t> input_ids,
                                                      const TextEncoder& encoder);

}  // namespace mneme::dataset

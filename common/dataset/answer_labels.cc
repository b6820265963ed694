#include "common/dataset/answer_labels.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status/status_macros.h"

namespace mneme::dataset {
namespace {

absl::StatusOr<int64_t> CountTokens(absl::string_view text, const TextEncoder& encoder) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   encoder.Encode(text, /*add_special_tokens=*/false));
  return static_cast<int64_t>(ids.size());
}

// Ignores [begin, end), as much of it as there is.
void Ignore(int64_t begin, int64_t end, std::vector<int32_t>* labels) {
  const auto size = static_cast<int64_t>(labels->size());
  begin = std::clamp<int64_t>(begin, 0, size);
  end = std::clamp<int64_t>(end, begin, size);
  std::fill(labels->begin() + begin, labels->begin() + end, kIgnoredLabel);
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> AnswerLabels(const TurnMarks& marks, absl::string_view text,
                                                  absl::Span<const int32_t> input_ids,
                                                  const TextEncoder& encoder) {
  std::vector<int32_t> labels(input_ids.begin(), input_ids.end());
  const auto num_tokens = static_cast<int64_t>(labels.size());
  ASSIGN_OR_RETURN(const int64_t turn_end_size, CountTokens(marks.turn_end, encoder));
  int64_t at = 0;
  bool is_first = true;
  for (const absl::string_view piece : absl::StrSplit(text, absl::ByString(marks.turn_end))) {
    if (piece.empty()) break;
    ASSIGN_OR_RETURN(int64_t piece_size, CountTokens(piece, encoder));
    const std::vector<absl::string_view> parts =
        absl::StrSplit(piece, absl::ByString(marks.answer_start));
    if (parts.size() == 2) {
      ASSIGN_OR_RETURN(int64_t prompt_size,
                       CountTokens(absl::StrCat(parts[0], marks.answer_start), encoder));
      if (is_first) {
        piece_size += marks.num_leading;
        prompt_size += marks.num_leading;
      }
      Ignore(at + marks.left_offset, at + prompt_size, &labels);
    } else {
      // The published rule leaves the leading tokens out of the count here, so that after a piece
      // without an answer (the system message of llama-3) all masks are one token early.
      Ignore(at + marks.left_offset, at + piece_size + turn_end_size, &labels);
    }
    at += piece_size + turn_end_size;
    is_first = false;
    if (at > num_tokens) break;
  }
  Ignore(at + marks.left_offset, num_tokens, &labels);
  return labels;
}

absl::StatusOr<std::vector<int32_t>> LastTokensLabels(absl::string_view answer,
                                                      absl::Span<const int32_t> input_ids,
                                                      const TextEncoder& encoder) {
  ASSIGN_OR_RETURN(const int64_t answer_size, CountTokens(answer, encoder));
  std::vector<int32_t> labels(input_ids.begin(), input_ids.end());
  Ignore(0, static_cast<int64_t>(labels.size()) - answer_size, &labels);
  return labels;
}

}  // namespace mneme::dataset

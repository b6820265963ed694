#include "common/dataset/lm_windows.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/dataset/answer_labels.h"
#include "common/status/status_macros.h"

namespace mneme::dataset {

absl::StatusOr<std::vector<LabelledChunk>> CutWindows(absl::Span<const int32_t> ids,
                                                      std::optional<int32_t> bos,
                                                      const WindowOptions& options) {
  const int64_t max_size = options.max_length - (bos.has_value() ? 1 : 0);
  if (max_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_length leaves no place for a token, use at least ",
                     bos.has_value() ? 2 : 1, ": ", options.max_length));
  }
  if (options.stride < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("stride must be 0 (one chunk) or the tokens to go on by: ", options.stride));
  }
  std::vector<LabelledChunk> chunks;
  const auto num_tokens = static_cast<int64_t>(ids.size());
  if (num_tokens < options.min_length) return chunks;
  int64_t num_covered = 0;
  int64_t begin = 0;
  while (begin < num_tokens) {
    const int64_t size = std::min(max_size, num_tokens - begin);
    const int64_t num_known = std::clamp<int64_t>(num_covered - begin, 0, size);
    LabelledChunk chunk;
    if (bos.has_value()) {
      chunk.input_ids.push_back(*bos);
      chunk.labels.push_back(kIgnoredLabel);
    }
    const absl::Span<const int32_t> tokens = ids.subspan(begin, size);
    chunk.input_ids.insert(chunk.input_ids.end(), tokens.begin(), tokens.end());
    chunk.labels.insert(chunk.labels.end(), num_known, kIgnoredLabel);
    chunk.labels.insert(chunk.labels.end(), tokens.begin() + num_known, tokens.end());
    chunks.push_back(std::move(chunk));
    num_covered = begin + size;
    if (num_covered == num_tokens || options.stride == 0) break;
    // Not added where it would pass the end, so that no sum overflows.
    if (options.stride >= num_tokens - begin) break;
    begin += options.stride;
  }
  return chunks;
}

absl::StatusOr<std::vector<LabelledChunk>> EncodeWindows(absl::string_view text,
                                                         const TextEncoder& encoder,
                                                         const WindowOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   encoder.Encode(text, /*add_special_tokens=*/false));
  return CutWindows(ids, encoder.leading_bos(), options);
}

}  // namespace mneme::dataset

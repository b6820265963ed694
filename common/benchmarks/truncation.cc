#include "common/benchmarks/truncation.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/status/status_macros.h"

namespace mneme::benchmarks {

absl::StatusOr<std::string> TruncateMiddle(absl::string_view prompt, int64_t max_length,
                                           const dataset::TextEncoder& encoder) {
  if (max_length < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt must be allowed 2 tokens or more: ", max_length));
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   encoder.Encode(prompt, /*add_special_tokens=*/true));
  if (static_cast<int64_t>(ids.size()) <= max_length) return std::string(prompt);
  const auto half = static_cast<size_t>(max_length / 2);
  const absl::Span<const int32_t> all = ids;
  ASSIGN_OR_RETURN(const std::string begin,
                   encoder.Decode(all.first(half), /*skip_special_tokens=*/true));
  ASSIGN_OR_RETURN(const std::string end,
                   encoder.Decode(all.last(half), /*skip_special_tokens=*/true));
  return absl::StrCat(begin, end);
}

}  // namespace mneme::benchmarks

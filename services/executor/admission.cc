#include "services/executor/admission.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"

namespace mneme::executor {
namespace {

// Bounds a sequence whose window lets it run past the context.
constexpr int64_t kMaxSequenceTokens = int64_t{1} << 20;

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

// The tokens that prompt and answer may have together, pages aside.
int64_t MaxTokens(const memory::MemoryPolicy& policy, const AdmissionLimits& limits) {
  const memory::AttentionMask mask = policy.mask();
  const bool is_windowed =
      mask.window > 0 && mask.window + mask.sinks <= limits.model.context_length;
  return is_windowed ? kMaxSequenceTokens : policy.MaxTokens(limits.model.context_length);
}

int64_t PeakPages(const WorkSpec& spec, const AdmissionLimits& limits, int64_t num_tokens) {
  return spec.policy->EstimatePeakPages(limits.kv_shape, num_tokens, limits.step_tokens);
}

absl::Status TooSmall(absl::string_view what, int64_t tokens, int64_t needed, int64_t total) {
  return absl::ResourceExhaustedError(absl::StrCat(
      what, " needs more key/value pages than this executor has; shorten it, choose a window ",
      "memory policy or raise kv_budget_bytes: ", tokens, " tokens, ", needed, " pages of ",
      total));
}

absl::StatusOr<int64_t> ScoreLimit(const WorkSpec& spec, const AdmissionLimits& limits) {
  const int64_t num_context = static_cast<int64_t>(spec.prompt.size());
  int64_t longest = 0;
  for (const std::vector<int32_t>& ids : spec.continuations) {
    longest = std::max(longest, static_cast<int64_t>(ids.size()));
  }
  const int64_t max_tokens = MaxTokens(*spec.policy, limits);
  if (num_context + longest > max_tokens) {
    return status::InvalidField(
        "context_ids", absl::StrCat("context and continuation are over the model's context of ",
                                    max_tokens, " tokens: ", num_context, " + ", longest));
  }
  const int64_t pages =
      PeakPages(spec, limits, num_context) + limits.kv_shape.num_heads() * (1 + PagesOf(longest));
  if (pages > limits.num_pages) {
    return TooSmall("the context with its longest continuation", num_context + longest, pages,
                    limits.num_pages);
  }
  return num_context + longest;
}

}  // namespace

absl::StatusOr<int64_t> TokenLimit(const WorkSpec& spec, const AdmissionLimits& limits) {
  if (spec.is_score()) return ScoreLimit(spec, limits);
  const SamplingParams& sampling = *spec.sampling;
  if (sampling.n > limits.max_running) {
    return status::InvalidField("sampling.n",
                                absl::StrCat("is over the number of sequences that this executor "
                                             "runs at a time: ",
                                             sampling.n, " > ", limits.max_running));
  }
  const int64_t num_prompt = static_cast<int64_t>(spec.prompt.size());
  const int64_t num_known = num_prompt + static_cast<int64_t>(spec.generated.size());
  const int64_t max_tokens = MaxTokens(*spec.policy, limits);
  if (num_known >= max_tokens) {
    return status::InvalidField(
        "prompt_ids",
        absl::StrCat("prompt leaves no room for an answer in the model's context of ", max_tokens,
                     " tokens; shorten it or choose a window memory policy: ", num_known));
  }
  const bool is_bounded = sampling.max_tokens > 0;
  int64_t limit = std::min(
      max_tokens, num_prompt + (is_bounded ? sampling.max_tokens : limits.model.context_length));
  // The last token is never computed.
  const int64_t needed = PeakPages(spec, limits, std::max(limit, num_known + 1) - 1);
  if (needed <= limits.num_pages) return limit;
  if (is_bounded) return TooSmall("prompt with max_tokens", limit, needed, limits.num_pages);
  const int64_t least = PeakPages(spec, limits, num_known);
  if (least > limits.num_pages) {
    return TooSmall("prompt", num_known, least, limits.num_pages);
  }
  int64_t low = num_known;  // fits
  int64_t high = limit;     // does not
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (PeakPages(spec, limits, middle) <= limits.num_pages ? low : high) = middle;
  }
  return low + 1;
}

inference::v1::MemoryEstimate EstimateMemory(const memory::MemoryPolicy& policy,
                                             const AdmissionLimits& limits, int64_t num_tokens,
                                             int64_t page_bytes) {
  inference::v1::MemoryEstimate estimate;
  estimate.set_policy(policy.Describe());
  estimate.set_max_tokens(MaxTokens(policy, limits));
  estimate.set_resident_pages(policy.EstimateResidentPages(limits.kv_shape, num_tokens));
  estimate.set_resident_bytes(estimate.resident_pages() * page_bytes);
  estimate.set_peak_pages(
      policy.EstimatePeakPages(limits.kv_shape, num_tokens, limits.step_tokens));
  estimate.set_peak_bytes(estimate.peak_pages() * page_bytes);
  estimate.set_full_bytes(memory::FullPolicy()->EstimateResidentPages(limits.kv_shape, num_tokens) *
                          page_bytes);
  estimate.set_fits(num_tokens <= estimate.max_tokens() &&
                    estimate.peak_pages() <= limits.num_pages);
  return estimate;
}

}  // namespace mneme::executor

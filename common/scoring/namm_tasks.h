// The tasks that NAMM is trained and evaluated on: LongBench's 21 and ChouBun's four. Source:
// "spec/namm.md" 9.3.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/scoring/answer_metric.h"

namespace mneme::scoring {

// Returns what a task ("narrativeqa", "corp_sec_sum") is scored by. NOT_FOUND: another name.
absl::StatusOr<Metric> NammMetric(absl::string_view task);

// Returns MeanBestPercent, as common/evolution takes it. NOT_FOUND: no such task.
// INVALID_ARGUMENT: no prompt.
absl::StatusOr<double> NammTaskScore(absl::string_view task,
                                     absl::Span<const AnsweredPrompt> prompts,
                                     const Segmenters& segmenters);

}  // namespace mneme::scoring

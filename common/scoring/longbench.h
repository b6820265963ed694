// LongBench as Activation Beacon's evaluation scores it ("spec/activation-beacon.md" 7.3). Which
// task takes which metric and belongs to which category is told with the prompts, not here.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/scoring/answer_metric.h"

namespace mneme::scoring {

// Returns the metric that a LongBench function computes: "qa_f1_score", "rouge_score",
// "classification_score", "retrieval_score", "count_score", "code_sim_score"; of Chinese
// "qa_f1_score_zh", "rouge_score_zh", "retrieval_score_zh", whose published names also have the
// "zh" before "score". NOT_FOUND: another name.
absl::StatusOr<Metric> LongBenchMetric(absl::string_view name);

// Returns MeanBestPercent rounded to two places.
// INVALID_ARGUMENT: no prompt.
absl::StatusOr<double> LongBenchTaskScore(absl::string_view task, const Metric& metric,
                                          absl::Span<const AnsweredPrompt> prompts,
                                          const Segmenters& segmenters);

struct LongBenchResult {
  std::string task;
  std::string category;
  double score = 0;  // 0 to 100
};

struct LongBenchSummary {
  std::map<std::string, double> by_category;  // means of the categories' tasks
  double average = 0;                         // mean of all tasks, not of the categories
};

// INVALID_ARGUMENT: no result.
absl::StatusOr<LongBenchSummary> SummariseLongBench(absl::Span<const LongBenchResult> results);

}  // namespace mneme::scoring

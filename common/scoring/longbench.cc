#include "common/scoring/longbench.h"

#include <cstdint>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status/status_macros.h"

namespace mneme::scoring {
namespace {

struct NamedMetric {
  absl::string_view name;
  Metric metric;
};

constexpr NamedMetric kMetrics[] = {
    {"qa_f1_score", {MetricKind::kQaF1}},
    {"qa_f1_score_zh", {MetricKind::kQaF1, Language::kChinese}},
    {"qa_f1_zh_score", {MetricKind::kQaF1, Language::kChinese}},
    {"rouge_score", {MetricKind::kRougeL}},
    {"rouge_score_zh", {MetricKind::kRougeL, Language::kChinese}},
    {"rouge_zh_score", {MetricKind::kRougeL, Language::kChinese}},
    {"classification_score", {MetricKind::kClassification}},
    {"retrieval_score", {MetricKind::kRetrieval}},
    {"retrieval_score_zh", {MetricKind::kRetrieval, Language::kChinese}},
    {"retrieval_zh_score", {MetricKind::kRetrieval, Language::kChinese}},
    {"count_score", {MetricKind::kCount}},
    {"code_sim_score", {MetricKind::kCodeBySubsequence}},
};

// As Python rounds: the decimal number of two places that is nearest to the exact binary value.
double RoundToTwoPlaces(double value) {
  return std::strtod(absl::StrFormat("%.2f", value).c_str(), nullptr);
}

}  // namespace

absl::StatusOr<Metric> LongBenchMetric(absl::string_view name) {
  for (const NamedMetric& named : kMetrics) {
    if (named.name == name) return named.metric;
  }
  return absl::NotFoundError(absl::StrCat("no LongBench metric has this name: ", name));
}

absl::StatusOr<double> LongBenchTaskScore(absl::string_view task, const Metric& metric,
                                          absl::Span<const AnsweredPrompt> prompts,
                                          const Segmenters& segmenters) {
  ASSIGN_OR_RETURN(const double percent, MeanBestPercent(task, metric, prompts, segmenters));
  return RoundToTwoPlaces(percent);
}

absl::StatusOr<LongBenchSummary> SummariseLongBench(absl::Span<const LongBenchResult> results) {
  if (results.empty()) return absl::InvalidArgumentError("there are no results to summarise");
  LongBenchSummary summary;
  std::map<std::string, int64_t> num_tasks;
  for (const LongBenchResult& result : results) {
    summary.by_category[result.category] += result.score;
    ++num_tasks[result.category];
    summary.average += result.score;
  }
  for (auto& [category, score] : summary.by_category) {
    score /= static_cast<double>(num_tasks[category]);
  }
  summary.average /= static_cast<double>(results.size());
  return summary;
}

}  // namespace mneme::scoring

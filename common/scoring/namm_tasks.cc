#include "common/scoring/namm_tasks.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::scoring {
namespace {

struct Task {
  absl::string_view name;
  Metric metric;
};

constexpr Task kTasks[] = {
    {"narrativeqa", {MetricKind::kQaF1}},
    {"qasper", {MetricKind::kQaF1}},
    {"multifieldqa_en", {MetricKind::kQaF1}},
    {"multifieldqa_zh", {MetricKind::kQaF1, Language::kChinese}},
    {"hotpotqa", {MetricKind::kQaF1}},
    {"2wikimqa", {MetricKind::kQaF1}},
    {"musique", {MetricKind::kQaF1}},
    {"dureader", {MetricKind::kRougeL, Language::kChinese}},
    {"gov_report", {MetricKind::kRougeL}},
    {"qmsum", {MetricKind::kRougeL}},
    {"multi_news", {MetricKind::kRougeL}},
    {"vcsum", {MetricKind::kRougeL, Language::kChinese}},
    {"trec", {MetricKind::kClassification}},
    {"triviaqa", {MetricKind::kQaF1}},
    {"samsum", {MetricKind::kRougeL}},
    {"lsht", {MetricKind::kClassification}},
    {"passage_count", {MetricKind::kCount}},
    {"passage_retrieval_en", {MetricKind::kRetrieval}},
    {"passage_retrieval_zh", {MetricKind::kRetrieval, Language::kChinese}},
    {"lcc", {MetricKind::kCodeByBlocks}},
    {"repobench-p", {MetricKind::kCodeByBlocks}},
    {"wiki_qa", {MetricKind::kQaF1, Language::kJapanese}},
    {"edinet_qa", {MetricKind::kQaF1, Language::kJapanese}},
    {"corp_sec_qa", {MetricKind::kQaF1, Language::kJapanese}},
    {"corp_sec_sum", {MetricKind::kRougeL, Language::kJapanese}},
};

}  // namespace

absl::StatusOr<Metric> NammMetric(absl::string_view task) {
  for (const Task& known : kTasks) {
    if (known.name == task) return known.metric;
  }
  return absl::NotFoundError(absl::StrCat("NAMM has no task of this name: ", task));
}

absl::StatusOr<double> NammTaskScore(absl::string_view task,
                                     absl::Span<const AnsweredPrompt> prompts,
                                     const Segmenters& segmenters) {
  ASSIGN_OR_RETURN(const Metric metric, NammMetric(task));
  return MeanBestPercent(task, metric, prompts, segmenters);
}

}  // namespace mneme::scoring

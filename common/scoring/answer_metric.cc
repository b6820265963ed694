#include "common/scoring/answer_metric.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/scoring/classification.h"
#include "common/scoring/code_similarity.h"
#include "common/scoring/numbers.h"
#include "common/scoring/rouge.h"
#include "common/scoring/word_f1.h"
#include "common/scoring/words.h"

namespace mneme::scoring {
namespace {

constexpr absl::string_view kFirstLineTasks[] = {"trec", "triviaqa", "samsum", "lsht"};

const Segmenter& SegmenterOf(Language language, const Segmenters& segmenters) {
  return language == Language::kJapanese ? segmenters.japanese : segmenters.chinese;
}

}  // namespace

double ScoreAnswer(const Metric& metric, absl::string_view prediction, absl::string_view reference,
                   absl::Span<const std::string> classes, const Segmenters& segmenters) {
  const bool is_english = metric.language == Language::kEnglish;
  const Segmenter& segment = SegmenterOf(metric.language, segmenters);
  switch (metric.kind) {
    case MetricKind::kQaF1:
      return is_english ? EnglishF1(prediction, reference)
                        : SegmentedF1(prediction, reference, segment);
    case MetricKind::kRougeL:
      return is_english ? RougeL(prediction, reference).f
                        : SegmentedRougeL(segment(prediction), segment(reference)).f;
    case MetricKind::kClassification:
      return ClassificationScore(prediction, reference, classes);
    case MetricKind::kRetrieval:
      return RetrievalScore(prediction, reference, is_english ? "Paragraph " : "段落");
    case MetricKind::kCount:
      return CountScore(prediction, reference);
    case MetricKind::kCodeBySubsequence:
      return CodeSimilarity(prediction, reference, CodeMatching::kSubsequence);
    case MetricKind::kCodeByBlocks:
      return CodeSimilarity(prediction, reference, CodeMatching::kBlocks);
  }
  return 0;  // not reached: every kind returns
}

double BestScore(absl::string_view task, const Metric& metric, const AnsweredPrompt& prompt,
                 const Segmenters& segmenters) {
  absl::string_view prediction = prompt.prediction;
  if (std::find(std::begin(kFirstLineTasks), std::end(kFirstLineTasks), task) !=
      std::end(kFirstLineTasks)) {
    prediction = FirstLine(prediction);
  }
  double best = 0;
  for (const std::string& reference : prompt.references) {
    best = std::max(best, ScoreAnswer(metric, prediction, reference, prompt.classes, segmenters));
  }
  return best;
}

absl::StatusOr<double> MeanBestPercent(absl::string_view task, const Metric& metric,
                                       absl::Span<const AnsweredPrompt> prompts,
                                       const Segmenters& segmenters) {
  if (prompts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("a task without prompts has no score: ", task));
  }
  double sum = 0;
  for (const AnsweredPrompt& prompt : prompts) sum += BestScore(task, metric, prompt, segmenters);
  return 100 * sum / static_cast<double>(prompts.size());
}

}  // namespace mneme::scoring

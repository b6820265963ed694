// The metrics that LongBench and NAMM's tasks share, as values: what a task is scored by, and the
// score of one answer. Start here; the files named after a metric hold how it is computed,
// longbench.h, infinitebench.h and namm_tasks.h which task takes which.
//
// All functions are pure, and thread-safe if the segmenters are. Texts are UTF-8; scores are 0 to 1
// where nothing else is said.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/scoring/segmenter.h"

namespace mneme::scoring {

enum class MetricKind {
  kQaF1,               // word_f1.h
  kRougeL,             // rouge.h: its F
  kClassification,     // classification.h
  kRetrieval,          // numbers.h
  kCount,              // numbers.h
  kCodeBySubsequence,  // code_similarity.h, as Activation Beacon has it
  kCodeByBlocks,       // code_similarity.h, as NAMM has it
};

// What words are, for F1 and ROUGE-L, and the word before a paragraph's number, for retrieval
// ("Paragraph", else "段落"). The other metrics don't depend on it.
enum class Language { kEnglish, kChinese, kJapanese };

struct Metric {
  MetricKind kind;
  Language language = Language::kEnglish;

  bool operator==(const Metric&) const = default;
};

// The default ones know ASCII words only (SegmentAscii).
struct Segmenters {
  Segmenter chinese = SegmentAscii;
  Segmenter japanese = SegmentAscii;
};

// Scores an answer against one reference. `classes`: all that there are, for classification.
double ScoreAnswer(const Metric& metric, absl::string_view prediction, absl::string_view reference,
                   absl::Span<const std::string> classes, const Segmenters& segmenters);

// The answer to one prompt of a benchmark's task, and what was expected.
struct AnsweredPrompt {
  std::string prediction;
  std::vector<std::string> references;
  std::vector<std::string> classes;  // empty where the task isn't classification
};

// Returns the best score over the references; 0: there are none. Of the answers of trec, triviaqa,
// samsum and lsht only the first line counts, after leading line breaks: models go on with the next
// example of these few-shot prompts.
double BestScore(absl::string_view task, const Metric& metric, const AnsweredPrompt& prompt,
                 const Segmenters& segmenters);

// Returns the mean of the prompts' best scores, 0 to 100. INVALID_ARGUMENT: no prompt.
absl::StatusOr<double> MeanBestPercent(absl::string_view task, const Metric& metric,
                                       absl::Span<const AnsweredPrompt> prompts,
                                       const Segmenters& segmenters);

}  // namespace mneme::scoring

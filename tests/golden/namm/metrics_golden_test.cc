// Scores of the metrics of NAMM's tasks. The words of Chinese and Japanese texts are in the files.
#include <gtest/gtest.h>

#include <map>

#include "common/scoring/answer_metric.h"
#include "tests/golden/metric_files.h"

namespace mneme::testing {
namespace {

using nlohmann::json;
using scoring::Language;
using scoring::Metric;
using scoring::MetricKind;

constexpr double kTolerance = 1e-9;

const std::map<std::string, Metric>& Metrics() {
  static const auto& metrics = *new std::map<std::string, Metric>{
      {"qa_f1", {MetricKind::kQaF1}},
      {"qa_f1_zh", {MetricKind::kQaF1, Language::kChinese}},
      {"qa_f1_ja", {MetricKind::kQaF1, Language::kJapanese}},
      {"rouge_l", {MetricKind::kRougeL}},
      {"rouge_zh", {MetricKind::kRougeL, Language::kChinese}},
      {"rouge_ja", {MetricKind::kRougeL, Language::kJapanese}},
      {"classification", {MetricKind::kClassification}},
      {"retrieval", {MetricKind::kRetrieval}},
      {"retrieval_zh", {MetricKind::kRetrieval, Language::kChinese}},
      {"count", {MetricKind::kCount}},
      {"code_sim", {MetricKind::kCodeByBlocks}},
  };
  return metrics;
}

// Segments as the file says; only ASCII texts may go without.
std::vector<std::string> WordsOf(const json& golden, const char* field, absl::string_view text) {
  return golden.contains(field) ? GoldenTexts(golden, field) : scoring::SegmentAscii(text);
}

TEST(NammMetricsGoldenTest, EqualTheReference) {
  ForEachMetricCase("namm", "ground_truth", [](const json& golden) {
    const auto metric = Metrics().find(golden["metric"].get<std::string>());
    ASSERT_TRUE(metric != Metrics().end()) << "unknown metric";
    const auto prediction = GoldenText(golden, "prediction");
    const auto truth = GoldenText(golden, "ground_truth");
    const scoring::Segmenter segment = [&](absl::string_view text) {
      return WordsOf(golden, text == prediction ? "prediction_tokens" : "ground_truth_tokens",
                     text);
    };
    const double score = scoring::ScoreAnswer(
        metric->second, prediction, truth, GoldenTexts(golden, "all_classes"), {segment, segment});
    EXPECT_NEAR(score, golden["score"].get<double>(), kTolerance);
  });
}

}  // namespace
}  // namespace mneme::testing

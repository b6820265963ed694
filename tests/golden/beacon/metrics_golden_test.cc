// Scores of the published LongBench and InfiniteBench metrics.
#include <gtest/gtest.h>

#include "common/benchmarks/prompts.h"
#include "common/scoring/infinitebench.h"
#include "common/scoring/longbench.h"
#include "tests/golden/metric_files.h"

namespace mneme::testing {
namespace {

using nlohmann::json;

constexpr double kTolerance = 1e-9;

absl::StatusOr<scoring::Metric> MetricOfTask(const std::string& task) {
  static const auto prompts = benchmarks::Prompts::Parse(benchmarks::DefaultPromptsJson());
  if (!prompts.ok()) return prompts.status();
  const auto found = prompts->LongBench(task);
  if (!found.ok()) return found.status();
  return scoring::LongBenchMetric((*found)->metric);
}

absl::StatusOr<double> LongBenchTask(const json& golden) {
  const auto task = golden["task"].get<std::string>();
  const auto metric = MetricOfTask(task);
  if (!metric.ok()) return metric.status();
  std::vector<scoring::AnsweredPrompt> prompts;
  for (size_t i = 0; i < golden["predictions"].size(); ++i) {
    prompts.push_back({.prediction = golden["predictions"][i].get<std::string>(),
                       .references = golden["answers"][i].get<std::vector<std::string>>(),
                       .classes = GoldenTexts(golden, "all_classes")});
  }
  return scoring::LongBenchTaskScore(task, *metric, prompts, {});
}

absl::StatusOr<double> LongBench(const json& golden) {
  if (golden["metric"] == "scorer") return LongBenchTask(golden);
  const auto metric = scoring::LongBenchMetric(golden["metric"].get<std::string>());
  if (!metric.ok()) return metric.status();
  return scoring::ScoreAnswer(*metric, GoldenText(golden, "prediction"),
                              GoldenText(golden, "truth"), GoldenTexts(golden, "all_classes"), {});
}

absl::StatusOr<double> InfiniteBench(const json& golden) {
  const auto label = scoring::ReadLabel(golden["label"]);
  if (!label.ok()) return label.status();
  return scoring::InfiniteBenchScore(golden["task"].get<std::string>(),
                                     GoldenText(golden, "prediction"), *label,
                                     golden.value("template", "mistral"));
}

TEST(BeaconMetricsGoldenTest, EqualTheReference) {
  ForEachMetricCase("beacon", "suite", [](const json& golden) {
    const bool is_longbench = golden["suite"] == "longbench";
    ASSERT_TRUE(is_longbench || golden["suite"] == "infbench") << "unknown suite";
    const auto score = is_longbench ? LongBench(golden) : InfiniteBench(golden);
    ASSERT_TRUE(score.ok()) << score.status();
    EXPECT_NEAR(*score, golden["score"].get<double>(), kTolerance);
  });
}

}  // namespace
}  // namespace mneme::testing

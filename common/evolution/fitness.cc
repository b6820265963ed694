#include "common/evolution/fitness.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::evolution {
namespace {

constexpr double kPercent = 100;
constexpr double kLeast = 1e-7;

bool IsInPercent(const std::string& task) { return absl::StartsWith(task, "lb/"); }

absl::StatusOr<double> BaseOf(const std::string& task, const TaskScore& score,
                              const BaseScores& base) {
  const auto found = base.find(task);
  if (found == base.end() || found->second.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are no scores of the full cache for task \"", task, "\""));
  }
  double sum = 0;
  if (score.requests.empty()) {
    for (const auto& [request, value] : found->second) sum += value;
    return sum / static_cast<double>(found->second.size());
  }
  for (const int64_t request : score.requests) {
    const auto value = found->second.find(request);
    if (value == found->second.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "there is no score of the full cache for request ", request, " of task \"", task, "\""));
    }
    sum += value->second;
  }
  return sum / static_cast<double>(score.requests.size());
}

absl::StatusOr<double> Mean(const std::map<std::string, double>& by_task) {
  if (by_task.empty()) return absl::InvalidArgumentError("a fitness needs at least one task");
  double sum = 0;
  for (const auto& [task, value] : by_task) sum += value;
  return sum / static_cast<double>(by_task.size());
}

}  // namespace

absl::StatusOr<Fitness> NormalisedFitness(const std::map<std::string, TaskScore>& scores,
                                          const BaseScores& base) {
  Fitness fitness;
  for (const auto& [task, score] : scores) {
    ASSIGN_OR_RETURN(const double full, BaseOf(task, score, base));
    fitness.by_task[task] = score.score / ((IsInPercent(task) ? kPercent : 1) * full + kLeast);
  }
  ASSIGN_OR_RETURN(fitness.fitness, Mean(fitness.by_task));
  return fitness;
}

absl::StatusOr<Fitness> UnnormalisedFitness(const std::map<std::string, TaskScore>& scores) {
  Fitness fitness;
  for (const auto& [task, score] : scores) {
    fitness.by_task[task] = IsInPercent(task) ? score.score / kPercent : score.score;
  }
  ASSIGN_OR_RETURN(fitness.fitness, Mean(fitness.by_task));
  fitness.fitness /= kPercent;
  return fitness;
}

}  // namespace mneme::evolution

// From the scores of tasks to one fitness, as the published NAMM trainer does it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace mneme::evolution {

// What the model with its full cache scores on each request, 0 to 1, by task and request.
using BaseScores = std::map<std::string, std::map<int64_t, double>>;

struct TaskScore {
  double score = 0;               // mean over the requests, 0 to 100
  std::vector<int64_t> requests;  // those that were scored; empty: all that the base has
};

struct Fitness {
  double fitness = 0;
  std::map<std::string, double> by_task;
};

// Returns the mean over the tasks of what is left of the base's score on the same requests. The
// published trainer compares tasks named "lb/..." on a scale of 0 to 100 and all others on one of 0
// to 1, so that these count 100 times as much: its results depend on it. INVALID_ARGUMENT: no task,
// or one that the base lacks, or a request of it.
absl::StatusOr<Fitness> NormalisedFitness(const std::map<std::string, TaskScore>& scores,
                                          const BaseScores& base);

// The same without a base. Scores of tasks named "lb/..." are divided by 100, and the mean of all
// once more. INVALID_ARGUMENT: no task.
absl::StatusOr<Fitness> UnnormalisedFitness(const std::map<std::string, TaskScore>& scores);

}  // namespace mneme::evolution

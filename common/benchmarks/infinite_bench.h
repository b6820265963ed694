// InfiniteBench (Zhang et al. 2024, arXiv 2402.13718): prompts and labels of its samples. What a
// task's template names is what is made of a sample, so new wordings need no code.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/benchmarks/prompts.h"

namespace mneme::benchmarks {

// What a task's template may have filled in:
//   context, input        fields of the sample
//   option_a .. option_d  its options, in order
//   function_call         the first call in the input, such as "func_12(-3)"; function: its name
//   wanted                what the input asks for: "The smallest number of .." -> "the smallest
//                         number"
inline constexpr absl::string_view kInfiniteBenchPlaces[] = {
    "context",  "input",    "option_a",      "option_b", "option_c",
    "option_d", "function", "function_call", "wanted"};

// One line of a task's file.
struct InfiniteBenchExample {
  std::string context;
  std::string input;
  std::vector<std::string> options;  // none where the task has no choice
  nlohmann::json answer;             // text, number or list, by task
};

// NOLINTNEXTLINE(bugprone-exception-escape): moving JSON does not throw.
struct InfiniteBenchSample {
  std::string prompt;    // not yet truncated nor in a chat template
  nlohmann::json label;  // the answer; where the template shows options: [text, letter]
};

// INVALID_ARGUMENT: the example lacks what the template names, or its answer is none of the options
// shown.
absl::StatusOr<InfiniteBenchSample> MakeInfiniteBenchSample(const TaskPrompt& task,
                                                            const InfiniteBenchExample& example);

}  // namespace mneme::benchmarks

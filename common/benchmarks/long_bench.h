// LongBench (Bai et al. 2023, arXiv 2308.14508): a prompt is a task's template with the context and
// the input of a sample put in.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/benchmarks/prompts.h"

namespace mneme::benchmarks {

// What a task's template may have filled in.
inline constexpr absl::string_view kLongBenchPlaces[] = {"context", "input"};

// Returns the prompt of a sample, not yet truncated nor in a chat template (`task.chat` says
// whether it is to be in one).
absl::StatusOr<std::string> LongBenchPrompt(const TaskPrompt& task, absl::string_view context,
                                            absl::string_view input);

}  // namespace mneme::benchmarks

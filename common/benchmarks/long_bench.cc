#include "common/benchmarks/long_bench.h"

namespace mneme::benchmarks {

absl::StatusOr<std::string> LongBenchPrompt(const TaskPrompt& task, absl::string_view context,
                                            absl::string_view input) {
  return task.prompt.Fill({{"context", context}, {"input", input}});
}

}  // namespace mneme::benchmarks

// The texts and settings of published benchmarks, read from one JSON file: ours, prompts.json, is
// in the binary; a user may give another of the same form (README.md).
//
//   ASSIGN_OR_RETURN(const Prompts prompts, Prompts::Parse(DefaultPromptsJson()));
//   ASSIGN_OR_RETURN(const TaskPrompt* task, prompts.LongBench("hotpotqa"));
//
// infinite_bench.h and long_bench.h make prompts from them, hidden_fact.h passkey and needle
// samples.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/benchmarks/prompt_template.h"

namespace mneme::benchmarks {

// How a benchmark asks one task, and scores it.
struct TaskPrompt {
  std::string task;
  PromptTemplate prompt;
  int64_t max_new_tokens = 0;
  std::string metric;           // its name in the benchmark
  std::string category;         // under which its score is averaged; "" for none
  bool chat = true;             // the prompt is a user's turn, not a text to go on with
  bool newline_as_eos = false;  // a line break ends the answer
};

// A number hidden in a text that repeats itself.
struct PasskeyTexts {
  std::string instruction;
  std::string filler;
  PromptTemplate fact;  // {passkey}
  std::string question;
  int64_t max_new_tokens = 0;
};

// A sentence hidden in a long text.
struct NeedleTexts {
  std::string instruction;
  std::string needle;
  std::string question;
  int64_t max_new_tokens = 0;
};

// Returns prompts.json.
absl::string_view DefaultPromptsJson();

// Immutable once parsed, so thread-safe.
class Prompts {
 public:
  // INVALID_ARGUMENT: not JSON, or not of the form that README.md describes; names the field.
  static absl::StatusOr<Prompts> Parse(absl::string_view json_text);

  // Each: NOT_FOUND, naming the tasks that there are. Pointers live as long as this object.
  absl::StatusOr<const TaskPrompt*> LongBench(absl::string_view task) const;
  // `prompt_set`: for which model the prompts are worded, "mistral".
  absl::StatusOr<const TaskPrompt*> InfiniteBench(absl::string_view prompt_set,
                                                  absl::string_view task) const;

  const std::vector<TaskPrompt>& long_bench() const { return long_bench_; }
  const std::map<std::string, std::vector<TaskPrompt>>& infinite_bench() const {
    return infinite_bench_;
  }
  const PasskeyTexts& passkey() const { return passkey_; }
  const NeedleTexts& needle() const { return needle_; }

 private:
  std::vector<TaskPrompt> long_bench_;
  std::map<std::string, std::vector<TaskPrompt>> infinite_bench_;  // by prompt set
  PasskeyTexts passkey_;
  NeedleTexts needle_;
};

}  // namespace mneme::benchmarks

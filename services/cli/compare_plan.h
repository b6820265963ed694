// What `mneme compare` runs, and what comes of it: pure, so that it can be tested without a server.
//
// A text is cut into windows of history and target. Every contender reads the history under its
// memory policy, with a budget that is a share of the history, and then predicts the target's
// tokens one after the other, as they stand in the text. What it predicts them with is what it has
// kept: the lower its perplexity, the more of what mattered is still there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::cli {

// A policy with the most entries per head that it may keep of the history.
struct Contender {
  // Its name, or "truncate": the full cache of a context that is cut off. It holds as many tokens
  // as the budget; when it is full, the older half goes and the younger is read again.
  std::string policy;
  std::string share;          // of the history, as it was written: "1/4"; "": all
  int64_t budget_tokens = 0;  // 0: all
  inference::v1::MemoryPolicy memory_policy;
  // The target is predicted in blocks of so many tokens, each behind as many tokens before it.
  int64_t history_tokens = 0;
  int64_t block_tokens = 0;
};

struct ComparePlan {
  int64_t history = 0;  // tokens
  int64_t target = 0;   // tokens
  std::vector<Contender> contenders;
};

// Returns the contenders of policies and shares ("1/2", "0.25"), `full` first and once, whatever
// was asked for: the others are compared with it. INVALID_ARGUMENT, naming what is wrong: an
// unknown policy, a share that is none, a budget that is too small.
absl::StatusOr<ComparePlan> MakeComparePlan(const std::vector<std::string>& policies,
                                            const std::vector<std::string>& shares, int64_t history,
                                            int64_t target);

// Returns the first tokens of each window: as many as asked for, spread evenly over the text, none
// overlapping. INVALID_ARGUMENT: the text is too short.
absl::StatusOr<std::vector<size_t>> WindowStarts(size_t num_tokens, int64_t window_tokens,
                                                 int64_t num_windows);

// What one contender did in all windows.
struct CompareResult {
  double sum_logprob = 0;  // of the target tokens
  int64_t num_scored = 0;
  int64_t num_read = 0;
  double read_ms = 0;
  int64_t num_written = 0;
  double write_ms = 0;
  int64_t resident_bytes = 0;  // the most of any window
  int64_t peak_bytes = 0;      // the most of any window

  double Perplexity() const;
  double ReadMsPerToken() const;
  double WriteMsPerToken() const;
};

// The table, headed, a line per contender.
std::vector<std::vector<std::string>> CompareRows(const ComparePlan& plan,
                                                  const std::vector<CompareResult>& results);
// One line of JSON for one contender.
std::string CompareJson(const Contender& contender, const CompareResult& result);

}  // namespace mneme::cli

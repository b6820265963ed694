// Requests of the wire, checked and turned into what the engine works on. Every error names the
// field it is about.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/executor/v1/executor.pb.h"
#include "services/executor/sequence.h"
#include "services/executor/step_model.h"

namespace mneme::executor {

inline constexpr int kMaxContinuations = 256;

// NOT_FOUND: `requested` is neither empty nor the executor's model.
absl::Status CheckModelName(absl::string_view requested, absl::string_view served);

// INVALID_ARGUMENT: sampling or memory policy out of range, ids outside the vocabulary, no prompt.
// The spec's deadline is left for the caller to set.
absl::StatusOr<WorkSpec> CheckGenerate(const v1::GenerateRequest& request,
                                       const ModelLimits& limits);
absl::StatusOr<WorkSpec> CheckScore(const v1::ScoreRequest& request, const ModelLimits& limits);

}  // namespace mneme::executor

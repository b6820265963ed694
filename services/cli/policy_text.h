// Memory policies as they are written on a command line.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/inference/v1/inference.pb.h"

namespace mneme::cli {

// What a policy is written as, for help texts: "full, window:SINKS,RECENT, …".
inline constexpr char kPolicyForms[] =
    "full[,elastic], window:SINKS,RECENT[,elastic], h2o:BUDGET, snapkv:BUDGET, l2norm:BUDGET, "
    "namm:ARTIFACT[,SIZE], "
    "beacon:RATIO[,RATIO...][,max=N]; a budget is a number of tokens per head or a share as 1/4";

// INVALID_ARGUMENT, with the forms there are.
absl::StatusOr<inference::v1::MemoryPolicy> ParsePolicy(absl::string_view text);

}  // namespace mneme::cli

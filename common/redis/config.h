// From a service's settings to a client's.
#pragma once

#include "absl/status/statusor.h"
#include "common/redis/options.h"
#include "mneme/memory/v1/config.pb.h"

namespace mneme::redis {

// Reads the password files. INVALID_ARGUMENT: a field is missing, wrong, or does not go with
// another one; the message names it. Else the error of reading a file.
absl::StatusOr<Options> OptionsOf(const memory::v1::RedisConfig& config);

}  // namespace mneme::redis

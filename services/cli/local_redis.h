// The redis-server that `mneme up` starts: its configuration, its password, how it is reached.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mneme/memory/v1/config.pb.h"
#include "services/cli/data_folder.h"
#include "services/cli/probe.h"

namespace mneme::cli {

struct LocalRedis {
  std::vector<std::string> command;
  memory::v1::RedisConfig connection;  // for the memory service
  ProbeTarget health;
};

// Writes redis/redis.conf and, the first time, redis/password (both for this user only).
// NOT_FOUND: no redis-server in PATH.
absl::StatusOr<LocalRedis> PrepareLocalRedis(const DataFolder& folder, const std::string& address);

// Returns what asks a Redis for its health. Fails as the reading of its password file does.
absl::StatusOr<ProbeTarget> HealthOf(const memory::v1::RedisConfig& redis);

// Returns whether the settings name a Redis of the user's.
bool IsExternal(const memory::v1::RedisConfig& redis);

// Returns whether it answers, with what to look at if it does not. INVALID_ARGUMENT: the settings
// are wrong by themselves.
absl::Status CheckExternalRedis(const memory::v1::RedisConfig& redis);

}  // namespace mneme::cli

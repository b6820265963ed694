// What `mneme doctor` says of a Redis: every setting that could lose an acknowledged turn, and what
// to do about it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "mneme/memory/v1/config.pb.h"
#include "services/cli/doctor_checks.h"

namespace mneme::cli {

// What one server says of itself.
struct RedisFacts {
  std::map<std::string, std::string> settings;  // CONFIG GET *; empty where that is forbidden
  std::map<std::string, std::string> info;      // the fields of INFO
};

// Reads the answer to INFO or CLUSTER INFO: lines "field:value".
std::map<std::string, std::string> ParseInfo(absl::string_view text);

// `name` begins each finding's name. `redis` is how the server is used.
std::vector<Finding> JudgeRedis(const std::string& name, const memory::v1::RedisConfig& redis,
                                const RedisFacts& facts);
// `info` is the answer to CLUSTER INFO.
Finding JudgeCluster(const std::map<std::string, std::string>& info);
// Whether what is sent can be read on the way.
Finding JudgeEncryption(const memory::v1::RedisConfig& redis);

// Asks a Redis; of a Cluster every master.
std::vector<Finding> CheckRedis(const memory::v1::RedisConfig& redis);

}  // namespace mneme::cli

// What `mneme doctor` looks at. Each check returns what it found and what to do about it; those
// that judge take what was found as an argument, so that they can be tested.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "services/cli/data_folder.h"

namespace mneme::cli {

struct Finding {
  enum class Level { kOk, kWarning, kBad };

  std::string what;  // "memory"
  Level level = Level::kOk;
  std::string found;
  std::string advice;  // empty where all is well

  static Finding Ok(std::string what, std::string found) {
    return {std::move(what), Level::kOk, std::move(found), ""};
  }
  static Finding Warning(std::string what, std::string found, std::string advice) {
    return {std::move(what), Level::kWarning, std::move(found), std::move(advice)};
  }
  static Finding Bad(std::string what, std::string found, std::string advice) {
    return {std::move(what), Level::kBad, std::move(found), std::move(advice)};
  }
};

// `cpuinfo` is the text of /proc/cpuinfo.
Finding JudgeCpu(absl::string_view cpuinfo);
// `meminfo` is the text of /proc/meminfo; `model_bytes` the weights' size, 0 if it is not known.
Finding JudgeMemory(absl::string_view meminfo, int64_t model_bytes);

Finding CheckPrograms();
Finding CheckOpenFiles();
Finding CheckGpu();
Finding CheckDisk(const std::string& what, const std::string& folder);
Finding CheckDataFolder(const DataFolder& folder);
Finding CheckPort(const std::string& host, int port, const std::string& flag,
                  const DataFolder& folder);
Finding CheckRedisServer();
// Opens the model; `*bytes` gets its weights' size.
Finding CheckModel(const DataFolder& folder, const std::string& model, int64_t* bytes);

}  // namespace mneme::cli

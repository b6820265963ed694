// Where the golden files are. Header-only: the binaries that compare them link different things.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace mneme::testing {

// An empty variable counts as missing.
inline std::string EnvironmentOr(const char* name, const std::string& missing) {
  const char* const value = std::getenv(name);
  return value == nullptr || *value == '\0' ? missing : value;
}

// The folder of a golden set, $MNEME_GOLDEN/<set>.
inline std::filesystem::path GoldenFolder(const std::string& set) {
  const std::string source = EnvironmentOr("MNEME_SOURCE", MNEME_SOURCE_DIR);
  return std::filesystem::path(EnvironmentOr("MNEME_GOLDEN", source + "/../shared/golden")) / set;
}

}  // namespace mneme::testing

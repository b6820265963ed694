// Runs a program to its end and keeps what it said.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace mneme::testing {

struct CommandResult {
  int exit_code = -1;  // 128 + signal number for one that a signal ended
  std::string out;
  std::string err;
};

// `command` is the path of the program and its arguments; `environment` is added to this process's
// own (NAME=value). Input is empty. DEADLINE_EXCEEDED: it was killed after `timeout`.
absl::StatusOr<CommandResult> RunCommand(const std::vector<std::string>& command,
                                         absl::Duration timeout = absl::Minutes(2),
                                         const std::vector<std::string>& environment = {});

// Returns the path of one of our programs: in MNEME_BIN, else beside the test.
std::string BinaryPath(const std::string& name);

// Runs `mneme` with these arguments.
absl::StatusOr<CommandResult> RunMneme(const std::vector<std::string>& arguments,
                                       absl::Duration timeout = absl::Minutes(2),
                                       const std::vector<std::string>& environment = {});

}  // namespace mneme::testing

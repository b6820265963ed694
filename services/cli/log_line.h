// Reads the JSON lines that the services write as their logs.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace mneme::cli {

// Returns what a person wants to read of a log line: its error or message, or the line itself if it
// is not one of ours.
std::string MessageOfLogLine(absl::string_view line);

}  // namespace mneme::cli

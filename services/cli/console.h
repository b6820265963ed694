// How every command talks to its caller: help, errors, exit codes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"
#include "services/cli/arguments.h"

namespace mneme::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;

// Parses. Returns nothing if the command is to run, else the exit code: help was printed, or what
// is wrong.
std::optional<int> ParseOrExit(Arguments& arguments, const std::vector<std::string>& words);

// Prints "mneme: message" to standard error and returns kExitError.
int Fail(const absl::Status& status);

void PrintLine(absl::string_view text);       // to standard output, flushed
void PrintErrorLine(absl::string_view text);  // to standard error

// Returns a message as one line of JSON, fields without a value included.
std::string ToJsonLine(const google::protobuf::Message& message);

// Returns text as a table: columns are aligned, the first row is the heading.
std::string Table(const std::vector<std::vector<std::string>>& rows);

// Returns how many terminal columns UTF-8 text takes.
size_t DisplayWidth(absl::string_view text);

// Returns the text without control characters (but new lines and tabs), so that it cannot steer the
// terminal.
std::string WithoutControls(absl::string_view text);

}  // namespace mneme::cli

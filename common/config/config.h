// A service's settings: one proto message, read from the JSON file that --config names. Field names
// are the proto's own; an unknown one is refused by name. Nothing else reads flags or environment.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace mneme::config {

// Parses JSON into `message`. INVALID_ARGUMENT names what is wrong.
absl::Status FromJson(absl::string_view json, google::protobuf::Message* message);

// Returns `message` as JSON that FromJson reads.
std::string ToJson(const google::protobuf::Message& message);

// Reads a whole file. NOT_FOUND or PERMISSION_DENIED with the path.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// Writes a file so that readers see the old content or the new one whole: temporary file, fsync,
// rename. `mode` are the permission bits.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view content,
                                 int mode = 0644);

// Reads `path` into `message`.
absl::Status FromFile(const std::string& path, google::protobuf::Message* message);

// Understands `--config FILE`, `--help` and `--version`. The latter two print and exit(0); anything
// else is INVALID_ARGUMENT with the usage line.
absl::Status FromCommandLine(int argc, char** argv, absl::string_view purpose,
                             google::protobuf::Message* message);

}  // namespace mneme::config

// Hashes of whole files, as lower-case hexadecimal digits.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace mneme::cli {

absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

// The hash that git names a file's content by: SHA-1 over "blob <size>\0" and the content.
absl::StatusOr<std::string> GitBlobSha1OfFile(const std::string& path);

}  // namespace mneme::cli

// The key that wraps the tenants' data keys: the one secret that is not in Redis.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/crypto/aead.h"

namespace mneme::memory {

// Reads 32 bytes, or 64 hexadecimal digits, from a file. FAILED_PRECONDITION names the file and
// what to do: it is missing, of another size, or others than its owner (and group) may read it.
absl::StatusOr<crypto::Key> LoadMasterKey(const std::string& path);

}  // namespace mneme::memory

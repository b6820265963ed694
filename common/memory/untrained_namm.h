// Writes a small NAMM artifact with random weights, for tests that need a network and not its
// choices: what it keeps is as good as drawn by lot. Not linked into services.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace mneme::memory {

// The same network each time, with an update every 32 tokens. UNAVAILABLE and the like: the file
// could not be written.
absl::Status WriteUntrainedNamm(const std::string& path);

}  // namespace mneme::memory

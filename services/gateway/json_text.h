// Appends JSON to a text: what a streamed token costs is a few copies, not a tree of objects.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace mneme::gateway {

// Appends `text` quoted; bytes that are not UTF-8 become U+FFFD.
void AppendJsonString(absl::string_view text, std::string* out);

// Appends the shortest number that reads back the same. What JSON has no number for (infinities,
// NaN) becomes -9999, as clients of log-probabilities expect.
void AppendJsonNumber(double value, std::string* out);
void AppendJsonNumber(float value, std::string* out);

}  // namespace mneme::gateway

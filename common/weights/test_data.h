// What the tests of this folder share: where the files of testdata/ are, and hostile copies of
// them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace mneme::weights {

// Returns the variable, or `missing` where it is not set or empty.
inline std::string Environment(const char* name, const std::string& missing) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? missing : value;
}

// The checkout: as ctest says, else where the test was built.
inline std::string SourceFolder() { return Environment("MNEME_SOURCE", MNEME_WEIGHTS_SOURCE); }

inline std::string TestData(absl::string_view name) {
  return absl::StrCat(SourceFolder(), "/common/weights/testdata/", name);
}

// The bytes of a file in a block of exactly their size, so that AddressSanitizer sees a read past
// the end.
inline std::vector<uint8_t> ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  bytes.shrink_to_fit();
  return bytes;
}

inline void WriteBytes(const std::string& path, absl::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<int64_t>(bytes.size()));
}

}  // namespace mneme::weights

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

inline std::string TestData(absl::string_view name) {
  const char* source = std::getenv("MNEME_SOURCE");
  return absl::StrCat(source == nullptr ? "." : source, "/common/weights/testdata/", name);
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

#include "tests/support/temp_folder.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace mneme::testing {

TempFolder::TempFolder() {
  const char* root = std::getenv("TMPDIR");
  path_ = absl::StrCat(root == nullptr || *root == '\0' ? "/tmp" : root, "/mneme-test-XXXXXX");
  if (mkdtemp(path_.data()) == nullptr) {
    std::perror(path_.c_str());
    std::abort();
  }
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempFolder::File(absl::string_view name) const {
  return absl::StrCat(path_, "/", name);
}

}  // namespace mneme::testing

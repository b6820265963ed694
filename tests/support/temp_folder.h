// A folder of a test's own that goes away with it.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace mneme::testing {

// Makes the folder in $TMPDIR (or /tmp) and removes it with all it holds in the destructor. A
// machine without room for a temporary folder ends the process.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  // Returns the path of `name` inside the folder.
  std::string File(absl::string_view name) const;

 private:
  std::string path_;
};

}  // namespace mneme::testing

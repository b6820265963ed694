#include "services/memory/master_key.h"

#include <sys/stat.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/config/config.h"

namespace mneme::memory {
namespace {

absl::Status Unusable(const std::string& path, absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat("the master key of master_key_file cannot be used: ", path, ": ", why));
}

}  // namespace

absl::StatusOr<crypto::Key> LoadMasterKey(const std::string& path) {
  if (path.empty()) {
    return absl::FailedPreconditionError(
        "master_key_file is not set: name a file with 32 random bytes, readable by this user only");
  }
  const absl::StatusOr<std::string> content = config::ReadFile(path);
  if (!content.ok()) return Unusable(path, content.status().message());
  struct stat info {};
  if (stat(path.c_str(), &info) != 0 || (info.st_mode & S_IRWXO) != 0) {
    return Unusable(path, "every user of the machine may read it, run `chmod 600` on it");
  }
  if (content->size() == crypto::kKeyBytes) return crypto::Key::FromBytes(*content);
  const absl::string_view digits = absl::StripAsciiWhitespace(*content);
  if (digits.size() == 2 * crypto::kKeyBytes &&
      std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
    return crypto::Key::FromBytes(absl::HexStringToBytes(digits));
  }
  return Unusable(path, "it must hold 32 bytes or 64 hexadecimal digits");
}

}  // namespace mneme::memory

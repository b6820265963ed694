// A service's log file, which never grows without bound: it is rotated when it is opened and when
// it has become too large.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme::cli {

// Not thread-safe. Move-only.
class LogFile {
 public:
  static constexpr int64_t kMaxBytes = 16 << 20;
  static constexpr int kKeptFiles = 3;  // path.1 (the youngest) to path.3, beside the current one

  // Opens a new file; what `path` held before becomes path.1.
  static absl::StatusOr<LogFile> Open(std::string path, int64_t max_bytes = kMaxBytes);

  LogFile() = default;
  LogFile(LogFile&& other) noexcept { *this = std::move(other); }
  LogFile& operator=(LogFile&& other) noexcept;
  ~LogFile();

  const std::string& path() const { return path_; }

  // Appends. What cannot be written (a full disk) is dropped: a log must not stop a service.
  void Write(absl::string_view bytes);

  // Returns the last line written that is not empty: what a service said before it ended.
  const std::string& last_line() const { return last_line_; }

 private:
  absl::Status Rotate();
  void Append(absl::string_view bytes);

  std::string path_;
  int64_t max_bytes_ = kMaxBytes;
  int fd_ = -1;
  int64_t size_ = 0;
  std::string line_;  // the unfinished one, its first bytes
  std::string last_line_;
};

}  // namespace mneme::cli

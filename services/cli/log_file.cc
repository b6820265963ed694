#include "services/cli/log_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::cli {
namespace {
constexpr size_t kMaxRememberedLine = 4096;
}  // namespace

absl::StatusOr<LogFile> LogFile::Open(std::string path, int64_t max_bytes) {
  LogFile file;
  file.path_ = std::move(path);
  file.max_bytes_ = max_bytes;
  RETURN_IF_ERROR(file.Rotate());
  return file;
}

LogFile& LogFile::operator=(LogFile&& other) noexcept {
  if (this == &other) return *this;
  if (fd_ >= 0) close(fd_);
  path_ = std::move(other.path_);
  max_bytes_ = other.max_bytes_;
  fd_ = std::exchange(other.fd_, -1);
  size_ = other.size_;
  line_ = std::move(other.line_);
  last_line_ = std::move(other.last_line_);
  return *this;
}

LogFile::~LogFile() {
  if (fd_ >= 0) close(fd_);
}

absl::Status LogFile::Rotate() {
  if (fd_ >= 0) close(fd_);
  // An empty file is not worth a place among the kept ones.
  if (FILE* old = std::fopen(path_.c_str(), "r"); old != nullptr) {
    const bool empty = std::fgetc(old) == EOF;
    std::fclose(old);
    for (int i = kKeptFiles - 1; i >= 1 && !empty; --i) {
      std::rename(absl::StrCat(path_, ".", i).c_str(), absl::StrCat(path_, ".", i + 1).c_str());
    }
    if (!empty) std::rename(path_.c_str(), absl::StrCat(path_, ".1").c_str());
  }
  size_ = 0;
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
  if (fd_ >= 0) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("cannot open log file ", path_, ": ", std::strerror(errno)));
}

void LogFile::Append(absl::string_view bytes) {
  while (!bytes.empty() && fd_ >= 0) {
    const ssize_t count = write(fd_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    size_ += count;
    bytes.remove_prefix(count);
  }
}

void LogFile::Write(absl::string_view bytes) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const absl::string_view part = bytes.substr(0, newline);
    line_.append(part.data(), std::min(part.size(), kMaxRememberedLine - line_.size()));
    if (newline == absl::string_view::npos) {
      Append(bytes);
      return;
    }
    Append(bytes.substr(0, newline + 1));
    if (!line_.empty()) last_line_ = std::exchange(line_, "");
    bytes.remove_prefix(newline + 1);
    // Between two lines only, so that no line is torn apart.
    if (size_ >= max_bytes_ && !Rotate().ok()) return;
  }
}

}  // namespace mneme::cli

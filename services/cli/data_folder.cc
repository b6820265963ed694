#include "services/cli/data_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::cli {
namespace {

std::string HomeFolder() {
  const std::string home = Environment("HOME");
  return home.empty() ? "/tmp" : home;
}

pid_t PidIn(const std::string& path) {
  const absl::StatusOr<std::string> content = config::ReadFile(path);
  int pid = 0;
  if (!content.ok() || !absl::SimpleAtoi(*content, &pid)) return 0;
  return pid;
}

}  // namespace

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string CacheFolder() {
  const std::string given = Environment("MNEME_CACHE");
  return given.empty() ? HomeFolder() + "/.cache/mneme" : given;
}

absl::Status CreateFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot make folder ", path, ": ", error.message()));
  }
  return absl::OkStatus();
}

DataFolder::DataFolder(const std::string& path) : path_(path) {
  if (path_.empty()) path_ = Environment("MNEME_DATA");
  if (path_.empty()) path_ = HomeFolder() + "/.local/share/mneme";
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path_, error);
  if (!error) path_ = absolute.lexically_normal().string();
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
}

absl::Status DataFolder::Create() const {
  const mode_t old_mask = umask(077);
  absl::Status made;
  for (const char* folder : {"", "/redis", "/run", "/logs"}) {
    if (made.ok()) made = CreateFolder(path_ + folder);
    if (made.ok() && access((path_ + folder).c_str(), W_OK | X_OK) != 0) {
      made = absl::PermissionDeniedError(
          absl::StrCat("cannot write in ", path_, folder, ": ", std::strerror(errno)));
    }
  }
  umask(old_mask);
  if (made.ok()) return made;
  return absl::PermissionDeniedError(
      absl::StrCat("the data folder cannot be used: ", made.message(),
                   "\nchoose another one with --data DIR (or MNEME_DATA), or make it yours: ",
                   "chown -R $(id -u) ", path_));
}

pid_t DataFolder::RunningPid() const {
  const int fd = open(lock_file().c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const bool free = flock(fd, LOCK_SH | LOCK_NB) == 0;
  close(fd);
  return free ? 0 : PidIn(lock_file());
}

absl::StatusOr<v1::UpState> DataFolder::ReadState() const {
  if (RunningPid() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no `mneme up` is running on ", path_,
                     "\nstart one with `mneme up`, or name its data folder with --data DIR"));
  }
  v1::UpState state;
  const absl::Status read = config::FromFile(state_file(), &state);
  // The lock is taken a moment before the first state is written.
  if (absl::IsNotFound(read)) {
    return absl::FailedPreconditionError(
        absl::StrCat("`mneme up` has only just been started on ", path_, "; try again"));
  }
  RETURN_IF_ERROR(read);
  return state;
}

absl::StatusOr<DataFolderLock> DataFolderLock::Take(const DataFolder& folder) {
  const std::string path = folder.lock_file();
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot open ", path, ": ", std::strerror(errno),
                     "\nchoose another data folder with --data DIR"));
  }
  // Somebody who only looks (RunningPid) may hold it for a moment.
  for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; ++i) {
    if (i < 10) {
      absl::SleepFor(absl::Milliseconds(10));
      continue;
    }
    close(fd);
    return absl::FailedPreconditionError(absl::StrCat(
        "`mneme up` is running on ", folder.path(), " already, as process ", PidIn(path),
        "\nstop it with `mneme down --data ", folder.path(), "`, or use another --data DIR"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 || write(fd, pid.data(), pid.size()) < 0) {
    const int error = errno;
    close(fd);
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot write ", path, ": ", std::strerror(error)));
  }
  return DataFolderLock(fd);
}

DataFolderLock::~DataFolderLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace mneme::cli

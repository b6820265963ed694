// The folder that one `mneme up` works in: where its files are, and the lock that keeps a second
// one out. Also where the other commands look for a running one.
//
//   up.lock          held while `mneme up` runs; holds its process id
//   up.json          what runs (UpState)
//   models.json      registered models      keys.json   API keys
//   master.key       wraps the keys that sessions are encrypted with: who loses it loses them all
//   redis/           Redis' files and its password
//   disk/            sessions' memory that Redis has no room for, if it was given a budget
//   run/             configuration and address files of the services
//   logs/            one file per service
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "mneme/cli/v1/state.pb.h"

namespace mneme::cli {

class DataFolder {
 public:
  // `path`: from --data; "" means $MNEME_DATA, else ~/.local/share/mneme. Made absolute; nothing is
  // created yet.
  explicit DataFolder(const std::string& path);

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  std::string lock_file() const { return File("up.lock"); }
  std::string state_file() const { return File("up.json"); }
  std::string models_file() const { return File("models.json"); }
  std::string keys_file() const { return File("keys.json"); }
  std::string master_key_file() const { return File("master.key"); }
  std::string disk_tier() const { return File("disk"); }

  // Makes the folder and those below it, for this user only. PERMISSION_DENIED or another code with
  // the reason and what to do.
  absl::Status Create() const;

  // Returns the process id of the `mneme up` that holds the lock, 0 if none does.
  pid_t RunningPid() const;

  // What a running `mneme up` says of itself. FAILED_PRECONDITION: none runs, and how to start one.
  absl::StatusOr<v1::UpState> ReadState() const;

 private:
  std::string path_;
};

// The lock of a data folder; given back by the destructor (or by the death of the process).
class DataFolderLock {
 public:
  // FAILED_PRECONDITION names the process that holds it.
  static absl::StatusOr<DataFolderLock> Take(const DataFolder& folder);

  DataFolderLock(DataFolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  DataFolderLock& operator=(DataFolderLock&&) = delete;
  ~DataFolderLock();

 private:
  explicit DataFolderLock(int fd) : fd_(fd) {}

  int fd_;
};

// $MNEME_CACHE, else ~/.cache/mneme: what the set-up downloaded.
std::string CacheFolder();

// Returns an environment variable, "" where it is not set.
std::string Environment(const char* name);

// Makes a folder and its parents, for this user only.
absl::Status CreateFolder(const std::string& path);

}  // namespace mneme::cli

// The folder below Redis: chunks of the snapshots that are used least, one immutable file each.
//
//   <path>/mneme-disk-tier                          the marker: which folder, of which store
//   <path>/t-<tenant>/<family>/<chunk name>-<id>    a chunk, packed (chunk_codec.h) and sealed
//
// Which file holds a chunk is for Redis to say: a chunk's record there names the folder and the
// file's id, which no other file ever has. A file that no record names is rubbish, whoever left it,
// and a record that names another folder is of no use here. So several replicas of the service may
// share a folder, or have one each.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/sync/mutex.h"
#include "services/memory/family.h"
#include "services/memory/memory_metrics.h"

namespace mneme::memory {

// A folder's id, then a file's: 16 hexadecimal digits each.
inline constexpr size_t kFilePlaceDigits = 32;

struct DiskTierOptions {
  std::string path;
  int64_t budget_bytes = 0;  // of files; 0: no bound
  // Of all services that know the same sessions; another store's folder is refused.
  std::string store_id;
};

// Thread-safe. Calls of the filesystem that fail are counted, and are tried again at the next call.
class DiskTier {
 public:
  // `metrics` must outlive the tier.
  DiskTier(DiskTierOptions options, MemoryMetrics& metrics)
      : options_(std::move(options)), metrics_(metrics) {}

  // Makes the folder and its marker where there are none, and finds out whether it can be used now.
  // FAILED_PRECONDITION: it is another store's, or somebody else's. UNAVAILABLE: it cannot be read,
  // or it was there and has lost its marker (as a folder does whose filesystem is not mounted).
  absl::Status Open();
  // Whether a place is in the folder as it was last opened.
  bool Has(absl::string_view place) const;
  std::string folder_id() const;
  int64_t budget_bytes() const { return options_.budget_bytes; }
  const std::string& path() const { return options_.path; }

  struct Chunk {
    std::string name;
    std::string payload;
  };
  // Writes chunks of one family, each to a new file, and returns their places once all are on the
  // disk to stay. On an error none is left. RESOURCE_EXHAUSTED: there is no room. UNAVAILABLE: the
  // folder cannot be written.
  absl::StatusOr<std::vector<std::string>> Write(const Family& family,
                                                 const std::vector<Chunk>& chunks);
  // Returns a chunk's payload. Few reads run at a time, the others wait for their turn, until
  // `deadline` (DEADLINE_EXCEEDED). NOT_FOUND: the folder is there and the file is not. DATA_LOSS:
  // it is not what was written. UNAVAILABLE: it cannot be read now.
  absl::StatusOr<std::string> Read(const Family& family, absl::string_view name,
                                   absl::string_view place, absl::Time deadline);
  // Best effort: what stays is found by List.
  void Remove(const std::string& tenant, const std::string& family, absl::string_view name,
              absl::string_view place);
  // Removes what a tenant has whose key is destroyed, as far as it comes by `deadline`.
  void RemoveTenant(const std::string& tenant, absl::Time deadline);

  struct File {
    std::string name;  // of the chunk
    std::string place;
    int64_t bytes = 0;
  };
  struct FamilyFiles {
    std::string tenant;
    std::string family;
    std::vector<File> files;
    int64_t bytes = 0;
  };
  // Returns all files, by family, and counts their bytes. Removes what writers that died have left
  // unfinished, and empty folders.
  absl::StatusOr<std::vector<FamilyFiles>> List();
  // The same of one family; empty where it has none.
  absl::StatusOr<std::vector<File>> ListFamily(const std::string& tenant,
                                               const std::string& family);

  // Of all files: as listed, and changed by what this service has written and removed since.
  int64_t bytes() const { return bytes_; }

 private:
  std::string TenantFolder(const std::string& tenant) const;
  std::string FamilyFolder(const std::string& tenant, const std::string& family) const;
  absl::Status ReadMarker();
  absl::Status MakeMarker();
  absl::Status Failed(absl::string_view operation, const absl::Status& status);
  absl::StatusOr<std::string> WriteOne(const Family& family, const Chunk& chunk,
                                       const std::string& folder);
  absl::Status MakeFolders(const Family& family);

  const DiskTierOptions options_;
  MemoryMetrics& metrics_;
  std::atomic<int64_t> bytes_ = 0;

  mutable sync::Mutex mutex_;
  sync::CondVar read_ended_;
  std::string folder_id_ ABSL_GUARDED_BY(mutex_);  // "": never opened
  int reads_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme::memory

#include "services/memory/disk_tier.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <future>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/crypto/aead.h"
#include "common/status/status_macros.h"
#include "services/memory/chunk_codec.h"
#include "services/memory/snapshot_check.h"

namespace mneme::memory {
namespace {

constexpr char kMarker[] = "mneme-disk-tier";
constexpr char kFormat[] = "mneme disk tier, format 1";
constexpr char kTenantPrefix[] = "t-";
constexpr char kUnfinished[] = ".tmp";
constexpr size_t kIdBytes = 8;
constexpr size_t kIdDigits = 2 * kIdBytes;
constexpr size_t kNameDigits = 32;
// Sealed, a file is hardly larger than its chunk.
constexpr size_t kMaxFileBytes = kMaxChunkBytes + 4096;
// Files written at a time, so that the waits for the disk overlap; and files read at a time, so
// that a slow disk holds up few of the threads that also serve what is in Redis.
constexpr size_t kMaxWriters = 4;
constexpr int kMaxReads = 4;
// A file that has not got its name for so long never will.
constexpr absl::Duration kUnfinishedAge = absl::Minutes(10);

absl::Status StatusOfErrno(int error, absl::string_view what, absl::string_view path) {
  const std::string message = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    case ENOENT:
      return absl::NotFoundError(message);
    default:
      return absl::UnavailableError(message);
  }
}

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags, mode_t mode = 0)
      : fd_(open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, mode)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  bool ok() const { return fd_ >= 0; }
  int get() const { return fd_; }
  // Filesystems may tell only now that there was no room.
  int Close() {
    const int fd = std::exchange(fd_, -1);
    return close(fd) == 0 ? 0 : errno;
  }

 private:
  int fd_;
};

absl::Status SyncFolder(const std::string& path) {
  const Descriptor folder(path, O_RDONLY | O_DIRECTORY);
  if (!folder.ok() || fsync(folder.get()) != 0) {
    return StatusOfErrno(errno, "the disk tier's folder cannot be written,", path);
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, absl::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return StatusOfErrno(errno, "a file of the disk tier is not written,", path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAll(const std::string& path, size_t max_bytes) {
  const Descriptor file(path, O_RDONLY);
  if (!file.ok()) return StatusOfErrno(errno, "a file of the disk tier cannot be read,", path);
  struct stat info {};
  if (fstat(file.get(), &info) != 0) {
    return StatusOfErrno(errno, "a file of the disk tier cannot be read,", path);
  }
  if (!S_ISREG(info.st_mode) || static_cast<size_t>(info.st_size) > max_bytes) {
    return absl::DataLossError(
        absl::StrCat("a file of the disk tier is larger than any can be: ", path));
  }
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t got = read(file.get(), bytes.data() + at, bytes.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return StatusOfErrno(errno, "a file of the disk tier cannot be read,", path);
    if (got == 0) break;
    at += static_cast<size_t>(got);
  }
  bytes.resize(at);
  return bytes;
}

// Returns what a folder holds; one that is not there holds nothing.
absl::StatusOr<std::vector<std::string>> NamesIn(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(path.c_str()), &closedir);
  std::vector<std::string> names;
  if (folder == nullptr) {
    if (errno == ENOENT) return names;
    return StatusOfErrno(errno, "the disk tier's folder cannot be read,", path);
  }
  while (true) {
    errno = 0;
    const dirent* const entry = readdir(folder.get());
    if (entry == nullptr) break;
    std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(std::move(name));
  }
  if (errno != 0) return StatusOfErrno(errno, "the disk tier's folder cannot be read,", path);
  return names;
}

// Writes a file whole, syncs it and gives it its name.
absl::Status WriteFile(const std::string& unfinished, const std::string& path,
                       absl::string_view bytes) {
  const auto write = [&]() -> absl::Status {
    Descriptor file(unfinished, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (!file.ok()) {
      return StatusOfErrno(errno, "a file of the disk tier is not made,", unfinished);
    }
    RETURN_IF_ERROR(WriteAll(file.get(), bytes, unfinished));
    if (fsync(file.get()) != 0) {
      return StatusOfErrno(errno, "a file of the disk tier is not written,", unfinished);
    }
    if (const int error = file.Close(); error != 0) {
      return StatusOfErrno(error, "a file of the disk tier is not written,", unfinished);
    }
    if (rename(unfinished.c_str(), path.c_str()) != 0) {
      return StatusOfErrno(errno, "a file of the disk tier does not get its name,", path);
    }
    return absl::OkStatus();
  };
  const absl::Status status = write();
  if (!status.ok()) unlink(unfinished.c_str());
  return status;
}

bool IsHex(absl::string_view text, size_t digits) {
  return text.size() == digits && std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

std::string NewId() { return absl::BytesToHexString(crypto::RandomBytes(kIdBytes)); }

std::string FileName(absl::string_view name, absl::string_view place) {
  return absl::StrCat(name, "-", place.substr(kIdDigits));
}

}  // namespace

std::string DiskTier::TenantFolder(const std::string& tenant) const {
  return absl::StrCat(options_.path, "/", kTenantPrefix, tenant);
}

std::string DiskTier::FamilyFolder(const std::string& tenant, const std::string& family) const {
  return absl::StrCat(TenantFolder(tenant), "/", family);
}

absl::Status DiskTier::Failed(absl::string_view operation, const absl::Status& status) {
  if (!status.ok()) metrics_.CountDiskError(operation);
  return status;
}

bool DiskTier::Has(absl::string_view place) const {
  sync::MutexLock lock(mutex_);
  return place.size() == kFilePlaceDigits && !folder_id_.empty() &&
         absl::StartsWith(place, folder_id_);
}

std::string DiskTier::folder_id() const {
  sync::MutexLock lock(mutex_);
  return folder_id_;
}

absl::Status DiskTier::ReadMarker() {
  const std::string path = absl::StrCat(options_.path, "/", kMarker);
  const absl::StatusOr<std::string> text = ReadAll(path, 4096);
  // A marker that cannot be ours says nothing of the files.
  if (absl::IsDataLoss(text.status())) {
    return absl::FailedPreconditionError(text.status().message());
  }
  RETURN_IF_ERROR(text.status());
  const std::vector<absl::string_view> lines = absl::StrSplit(*text, '\n');
  absl::string_view folder = lines.size() > 1 ? lines[1] : "";
  absl::string_view store = lines.size() > 2 ? lines[2] : "";
  const bool is_read = lines[0] == kFormat && absl::ConsumePrefix(&folder, "folder ") &&
                       absl::ConsumePrefix(&store, "store ") && IsHex(folder, kIdDigits);
  if (!is_read) {
    return absl::FailedPreconditionError(
        absl::StrCat("the disk tier's marker is of another version, or damaged: ", path));
  }
  if (store != options_.store_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the disk tier's folder belongs to another store (another master key or Redis database), "
        "give each its own tiers.disk_path: ",
        options_.path));
  }
  sync::MutexLock lock(mutex_);
  folder_id_ = std::string(folder);
  return absl::OkStatus();
}

absl::Status DiskTier::MakeMarker() {
  std::error_code error;
  std::filesystem::create_directories(options_.path, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("the disk tier's folder cannot be made, ",
                                               options_.path, ": ", error.message()));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(options_.path));
  for (const std::string& name : names) {
    if (name == kMarker) return absl::OkStatus();  // another replica was faster
    if (name == "lost+found" || absl::EndsWith(name, kUnfinished)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("the disk tier's folder holds something and has no marker of ours, choose an "
                     "empty one as tiers.disk_path: ",
                     options_.path));
  }
  const std::string path = absl::StrCat(options_.path, "/", kMarker);
  const std::string unfinished = absl::StrCat(options_.path, "/.", NewId(), kUnfinished);
  const auto make = [&]() -> absl::Status {
    {
      const Descriptor file(unfinished, O_WRONLY | O_CREAT | O_EXCL, 0600);
      if (!file.ok()) {
        return StatusOfErrno(errno, "the disk tier's folder cannot be written,", unfinished);
      }
      RETURN_IF_ERROR(
          WriteAll(file.get(),
                   absl::StrCat(kFormat, "\nfolder ", NewId(), "\nstore ", options_.store_id, "\n"),
                   unfinished));
      if (fsync(file.get()) != 0) {
        return StatusOfErrno(errno, "the disk tier's folder cannot be written,", unfinished);
      }
    }
    // Unlike a rename this never takes the place of another replica's marker.
    if (link(unfinished.c_str(), path.c_str()) != 0 && errno != EEXIST) {
      return StatusOfErrno(errno, "the disk tier's marker is not made,", path);
    }
    return SyncFolder(options_.path);
  };
  const absl::Status status = make();
  unlink(unfinished.c_str());
  return status;
}

absl::Status DiskTier::Open() {
  absl::Status status = ReadMarker();
  if (absl::IsNotFound(status)) {
    if (!folder_id().empty()) {
      status = absl::UnavailableError(
          absl::StrCat("the disk tier's folder has lost its marker, is its filesystem mounted? ",
                       options_.path));
    } else {
      status = MakeMarker();
      if (status.ok()) status = ReadMarker();
    }
  }
  if (absl::IsNotFound(status)) status = absl::UnavailableError(status.message());
  return Failed("open", status);
}

absl::Status DiskTier::MakeFolders(const Family& family) {
  bool is_new = false;
  const std::string tenant_folder = TenantFolder(family.tenant());
  const std::string family_folder = FamilyFolder(family.tenant(), family.name());
  for (const std::string& folder : {tenant_folder, family_folder}) {
    if (mkdir(folder.c_str(), 0700) == 0) {
      is_new = true;
    } else if (errno != EEXIST) {
      return StatusOfErrno(errno, "the disk tier's folder cannot be written,", folder);
    }
  }
  if (!is_new) return absl::OkStatus();
  RETURN_IF_ERROR(SyncFolder(options_.path));
  return SyncFolder(tenant_folder);
}

absl::StatusOr<std::string> DiskTier::WriteOne(const Family& family, const Chunk& chunk,
                                               const std::string& folder) {
  const std::string id = NewId();
  const std::string sealed = family.SealFile(PackChunk(chunk.payload), chunk.name);
  const std::string place = absl::StrCat(folder_id(), id);
  RETURN_IF_ERROR(WriteFile(absl::StrCat(folder, "/.", id, kUnfinished),
                            absl::StrCat(folder, "/", FileName(chunk.name, place)), sealed));
  bytes_ += static_cast<int64_t>(sealed.size());
  return place;
}

absl::StatusOr<std::vector<std::string>> DiskTier::Write(const Family& family,
                                                         const std::vector<Chunk>& chunks) {
  RETURN_IF_ERROR(Open());
  const std::string folder = FamilyFolder(family.tenant(), family.name());
  absl::Status status;
  // A sweep removes folders that are empty just now: the second time it will not be.
  for (int attempt = 0; attempt < 2; ++attempt) {
    status = MakeFolders(family);
    if (!absl::IsNotFound(status)) break;
  }
  if (absl::IsNotFound(status)) status = absl::UnavailableError(status.message());
  RETURN_IF_ERROR(Failed("write", status));
  std::vector<std::string> places(chunks.size());
  std::atomic<size_t> next = 0;
  const auto write = [&]() -> absl::Status {
    for (size_t i = next++; i < chunks.size(); i = next++) {
      ASSIGN_OR_RETURN(places[i], WriteOne(family, chunks[i], folder));
    }
    return absl::OkStatus();
  };
  std::vector<std::future<absl::Status>> writers;
  for (size_t i = 1; i < std::min(kMaxWriters, chunks.size()); ++i) {
    writers.push_back(std::async(std::launch::async, write));
  }
  status = write();
  for (std::future<absl::Status>& writer : writers) status.Update(writer.get());
  if (status.ok()) status = SyncFolder(folder);
  if (status.ok()) return places;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (!places[i].empty()) Remove(family.tenant(), family.name(), chunks[i].name, places[i]);
  }
  if (absl::IsNotFound(status)) status = absl::UnavailableError(status.message());
  return Failed("write", status);
}

absl::StatusOr<std::string> DiskTier::Read(const Family& family, absl::string_view name,
                                           absl::string_view place, absl::Time deadline) {
  if (!Has(place)) return absl::NotFoundError("the file is in another folder");
  {
    const absl::Duration left =
        std::clamp(deadline - absl::Now(), absl::ZeroDuration(), absl::Hours(1));
    const auto until = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(left);
    sync::MutexLock lock(mutex_);
    while (reads_ == kMaxReads) {
      if (!read_ended_.WaitUntil(mutex_, until) && reads_ == kMaxReads) {
        return absl::DeadlineExceededError("the disk tier's other reads do not end in time");
      }
    }
    ++reads_;
  }
  const std::string path =
      absl::StrCat(FamilyFolder(family.tenant(), family.name()), "/", FileName(name, place));
  absl::StatusOr<std::string> sealed = ReadAll(path, kMaxFileBytes);
  {
    sync::MutexLock lock(mutex_);
    --reads_;
    read_ended_.NotifyOne();
  }
  if (absl::IsNotFound(sealed.status())) {
    // A filesystem that is not mounted has lost nothing.
    RETURN_IF_ERROR(Open());
    return sealed.status();
  }
  if (absl::IsUnavailable(sealed.status())) return Failed("read", sealed.status());
  if (!sealed.ok()) return Failed("damaged", sealed.status());
  const absl::StatusOr<std::string> packed = family.OpenFile(*std::move(sealed), name);
  if (!packed.ok()) return Failed("damaged", packed.status());
  absl::StatusOr<std::string> payload = UnpackChunk(*packed, kMaxChunkBytes);
  if (!payload.ok()) return Failed("damaged", payload.status());
  return payload;
}

void DiskTier::Remove(const std::string& tenant, const std::string& family, absl::string_view name,
                      absl::string_view place) {
  const std::string folder = FamilyFolder(tenant, family);
  const std::string path = absl::StrCat(folder, "/", FileName(name, place));
  struct stat info {};
  const bool is_known = stat(path.c_str(), &info) == 0;
  if (unlink(path.c_str()) == 0 && is_known) bytes_ -= info.st_size;
  // Only an empty folder goes.
  if (rmdir(folder.c_str()) == 0) rmdir(TenantFolder(tenant).c_str());
}

void DiskTier::RemoveTenant(const std::string& tenant, absl::Time deadline) {
  const absl::StatusOr<std::vector<std::string>> families = NamesIn(TenantFolder(tenant));
  if (!families.ok()) return;
  for (const std::string& family : *families) {
    const absl::StatusOr<std::vector<File>> files = ListFamily(tenant, family);
    if (!files.ok()) return;
    for (const File& file : *files) {
      if (absl::Now() >= deadline) return;
      Remove(tenant, family, file.name, file.place);
    }
  }
}

absl::StatusOr<std::vector<DiskTier::File>> DiskTier::ListFamily(const std::string& tenant,
                                                                 const std::string& family) {
  const std::string folder = FamilyFolder(tenant, family);
  const std::string folder_id = this->folder_id();
  const absl::StatusOr<std::vector<std::string>> names = NamesIn(folder);
  if (!names.ok()) return Failed("read", names.status());
  std::vector<File> files;
  for (const std::string& file_name : *names) {
    const std::string path = absl::StrCat(folder, "/", file_name);
    struct stat info {};
    if (lstat(path.c_str(), &info) != 0) continue;  // gone meanwhile
    if (absl::EndsWith(file_name, kUnfinished)) {
      if (absl::Now() - absl::TimeFromTimespec(info.st_mtim) > kUnfinishedAge) unlink(path.c_str());
      continue;
    }
    const std::vector<std::string> parts = absl::StrSplit(file_name, '-');
    if (parts.size() != 2 || !IsHex(parts[0], kNameDigits) || !IsHex(parts[1], kIdDigits)) continue;
    files.push_back({.name = parts[0],
                     .place = absl::StrCat(folder_id, parts[1]),
                     .bytes = static_cast<int64_t>(info.st_size)});
  }
  return files;
}

absl::StatusOr<std::vector<DiskTier::FamilyFiles>> DiskTier::List() {
  RETURN_IF_ERROR(Open());
  const absl::StatusOr<std::vector<std::string>> tenants = NamesIn(options_.path);
  if (!tenants.ok()) return Failed("read", tenants.status());
  std::vector<FamilyFiles> all;
  int64_t bytes = 0;
  for (const std::string& tenant_name : *tenants) {
    absl::string_view tenant = tenant_name;
    if (!absl::ConsumePrefix(&tenant, kTenantPrefix)) continue;
    const std::string folder = TenantFolder(std::string(tenant));
    const absl::StatusOr<std::vector<std::string>> families = NamesIn(folder);
    if (!families.ok()) return Failed("read", families.status());
    for (const std::string& name : *families) {
      FamilyFiles family{.tenant = std::string(tenant), .family = name};
      ASSIGN_OR_RETURN(family.files, ListFamily(family.tenant, family.family));
      if (family.files.empty()) {
        rmdir(FamilyFolder(family.tenant, family.family).c_str());
        continue;
      }
      for (const File& file : family.files) family.bytes += file.bytes;
      bytes += family.bytes;
      all.push_back(std::move(family));
    }
    rmdir(folder.c_str());
  }
  bytes_ = bytes;
  return all;
}

}  // namespace mneme::memory

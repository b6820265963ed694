#include "common/config/config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "google/protobuf/util/json_util.h"

namespace mneme::config {
namespace {

absl::Status FileError(int error, absl::string_view what, const std::string& path) {
  const std::string message = absl::StrCat(what, " ", path, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

// Makes the rename itself durable.
void SyncFolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

}  // namespace

absl::Status FromJson(absl::string_view json, google::protobuf::Message* message) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = false;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), message, options);
  if (parsed.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(std::string(parsed.message()));
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto printed = google::protobuf::util::MessageToJsonString(message, &json, options);
  return printed.ok() ? json : "{}";
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError(errno, "cannot open", path);
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      close(fd);
      return FileError(error, "cannot read", path);
    }
    if (count == 0) break;
    content.append(buffer, count);
  }
  close(fd);
  return content;
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view content, int mode) {
  std::string temporary = path + ".XXXXXX";
  const int fd = mkstemp(temporary.data());
  if (fd < 0) return FileError(errno, "cannot create a file beside", path);
  const auto give_up = [&](int error) {
    close(fd);
    unlink(temporary.c_str());
    return FileError(error, "cannot write", path);
  };
  while (!content.empty()) {
    const ssize_t count = write(fd, content.data(), content.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return give_up(errno);
    content.remove_prefix(count);
  }
  if (fchmod(fd, mode) != 0 || fsync(fd) != 0) return give_up(errno);
  if (rename(temporary.c_str(), path.c_str()) != 0) return give_up(errno);
  close(fd);
  SyncFolderOf(path);
  return absl::OkStatus();
}

absl::Status FromFile(const std::string& path, google::protobuf::Message* message) {
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path));
  return status::Annotate(FromJson(json, message), path);
}

absl::Status FromCommandLine(int argc, char** argv, absl::string_view purpose,
                             google::protobuf::Message* message) {
  const std::string name = message->GetDescriptor()->full_name();
  const std::string usage = absl::StrCat("usage: ", argv[0], " --config FILE");
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--help") {
      std::printf("%s\n%s\nFILE holds the JSON form of %s.\n", std::string(purpose).c_str(),
                  usage.c_str(), name.c_str());
      std::exit(0);
    }
    if (flag == "--version") {
      std::printf("%s %s\n", argv[0], MNEME_VERSION);
      std::exit(0);
    }
    if (flag == "--config" && i + 1 < argc) return FromFile(argv[i + 1], message);
    if (flag.rfind("--config=", 0) == 0) return FromFile(flag.substr(9), message);
  }
  return absl::InvalidArgumentError(usage);
}

}  // namespace mneme::config

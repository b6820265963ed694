#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/weights/safetensors.h"

namespace mneme::weights {
namespace {

using nlohmann::json;

absl::Status WriteAll(int descriptor, const void* data, uint64_t size, const std::string& path) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(descriptor, at, std::min<uint64_t>(size, 1 << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
    at += written;
    size -= static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

// A rename is only safe against a power cut once the folder that records it is on the disk.
absl::Status SyncFolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : path.substr(0, slash);
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", folder));
  const absl::Cleanup close = [descriptor] { ::close(descriptor); };
  if (::fsync(descriptor) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", folder));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> MakeHeader(absl::Span<const TensorView* const> tensors,
                                       const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const TensorView* tensor : tensors) {
    header[tensor->name] = {{"dtype", std::string(TypeName(tensor->type))},
                            {"shape", tensor->shape},
                            {"data_offsets", {offset, offset + tensor->size_bytes}}};
    offset += tensor->size_bytes;
  }
  // `replace` keeps dump from throwing at invalid UTF-8; what it replaced shows on reading back.
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  if (json::parse(text, nullptr, /*allow_exceptions=*/false) != header) {
    return absl::InvalidArgumentError("a tensor name or metadata text is not valid UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("safetensors header is over its bound: ", text.size(), " bytes"));
  }
  return text;
}

}  // namespace

absl::Status WriteSafetensors(absl::string_view path, absl::Span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorView*> sorted;
  absl::flat_hash_set<absl::string_view> names;
  for (const TensorView& tensor : tensors) {
    const auto fail = [&tensor](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("cannot write tensor: ", what, ": '",
                                                     absl::Utf8SafeCEscape(tensor.name), "'"));
    };
    if (tensor.name == "__metadata__") return fail("the name is reserved");
    if (!names.insert(tensor.name).second) return fail("the name appears twice");
    if (IsQuantized(tensor.type)) return fail("safetensors has no block types");
    ASSIGN_OR_RETURN(const uint64_t size, ByteSize(tensor.type, tensor.shape));
    if (size != tensor.size_bytes) return fail("its bytes do not match its shape");
    sorted.push_back(&tensor);
  }
  std::sort(sorted.begin(), sorted.end(), [](const TensorView* a, const TensorView* b) {
    const int64_t a_bytes = BytesPerBlock(a->type);
    const int64_t b_bytes = BytesPerBlock(b->type);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a->name < b->name;
  });
  ASSIGN_OR_RETURN(const std::string header, MakeHeader(sorted, metadata));

  static std::atomic<uint64_t> counter{0};
  const std::string target(path);
  const std::string temporary = absl::StrCat(target, ".", ::getpid(), ".", counter++, ".tmp");
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", temporary));
  }
  absl::Cleanup close = [descriptor] { ::close(descriptor); };
  absl::Cleanup remove = [&temporary] { ::unlink(temporary.c_str()); };
  const uint64_t header_size = header.size();
  RETURN_IF_ERROR(WriteAll(descriptor, &header_size, sizeof(header_size), temporary));
  RETURN_IF_ERROR(WriteAll(descriptor, header.data(), header.size(), temporary));
  for (const TensorView* tensor : sorted) {
    RETURN_IF_ERROR(WriteAll(descriptor, tensor->data, tensor->size_bytes, temporary));
  }
  if (::fsync(descriptor) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot sync ", temporary));
  }
  if (::rename(temporary.c_str(), target.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot rename ", temporary, " to ", target));
  }
  std::move(remove).Cancel();
  return SyncFolderOf(target);
}

}  // namespace mneme::weights

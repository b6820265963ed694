// Maps a file read-only. Weights are used in place: nothing is copied until a page is touched, and
// several processes on one machine share the same pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::weights {

// Owns one mapping. Movable; the address of the bytes does not change by a move. Reading is
// thread-safe. A file that another program shortens while it is mapped kills the reader (SIGBUS):
// replace model files by rename, never in place.
class MappedFile {
 public:
  // Maps the whole file. NOT_FOUND: no such file. INVALID_ARGUMENT: a folder or a device.
  // PERMISSION_DENIED; RESOURCE_EXHAUSTED: no address space or descriptors left.
  static absl::StatusOr<MappedFile> Open(absl::string_view path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const uint8_t* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const uint8_t* data_ = nullptr;  // null for an empty file
  size_t size_ = 0;
};

}  // namespace mneme::weights

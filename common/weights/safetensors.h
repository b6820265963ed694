// Reads and writes safetensors files: an 8-byte length, a JSON header, then the tensors' bytes.
//
// Reading maps the file and checks everything the header claims (length, JSON depth, repeated
// names, types, shape products, offsets that overlap or leave the file) before any view is handed
// out; a bad file gets INVALID_ARGUMENT naming the tensor and the offset.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/weights/mapped_file.h"
#include "common/weights/tensor_view.h"

namespace mneme::weights {

// Longest header that is read; the format's reference implementation has the same bound.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// One open file. Immutable, so thread-safe; views live as long as it does.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(absl::string_view path);
  // The same from bytes in memory, which must outlive the object.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Parse(absl::Span<const uint8_t> bytes,
                                                                absl::string_view name);

  const std::string& path() const { return path_; }
  // Sorted by offset in the file.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  const TensorView* FindTensor(absl::string_view name) const;  // null: no such tensor
  // The header's "__metadata__": text to text.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  SafetensorsFile(absl::Span<const uint8_t> bytes, std::string path)
      : path_(std::move(path)), bytes_(bytes) {}
  absl::Status ReadAll();

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  absl::Span<const uint8_t> bytes_;
  std::vector<TensorView> tensors_;
  absl::flat_hash_map<absl::string_view, size_t> tensor_index_;
  std::map<std::string, std::string> metadata_;
};

// The safetensors of a model folder: model.safetensors, else model.safetensors.index.json with its
// shards, else the only *.safetensors file there. Immutable, so thread-safe.
class SafetensorsModel {
 public:
  // NOT_FOUND: no such files, or a shard that the index names is missing. INVALID_ARGUMENT: the
  // index is broken, names a file outside the folder, or a tensor that its shard doesn't hold.
  static absl::StatusOr<std::unique_ptr<SafetensorsModel>> Open(absl::string_view folder);

  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }
  // Sorted by name.
  const std::vector<const TensorView*>& tensors() const { return tensors_; }
  const TensorView* FindTensor(absl::string_view name) const;  // null: no such tensor

 private:
  SafetensorsModel() = default;
  absl::Status OpenShards(const std::string& folder, const std::string& index_path);
  void IndexTensors();

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<const TensorView*> tensors_;
  absl::flat_hash_map<absl::string_view, const TensorView*> tensor_index_;
};

// Writes a file readable by every safetensors library. The tensors are laid out by falling element
// size, so all are aligned; `name`, `type`, `shape` and `data` of the views are used. The file
// appears at `path` complete or not at all: temporary file beside it, fsync, rename, fsync of the
// folder. INVALID_ARGUMENT: repeated or non-UTF-8 name, a block type, or bytes that don't match the
// shape. RESOURCE_EXHAUSTED: disk full. PERMISSION_DENIED, NOT_FOUND: the folder.
absl::Status WriteSafetensors(absl::string_view path, absl::Span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace mneme::weights

// Reads checkpoints that torch.save writes: an uncompressed zip with a pickle of nested dicts and
// one member per tensor storage. The pickle is not executed: of its opcodes only those that build
// dicts, tuples, texts, numbers and tensors are known, of its globals only the storage types,
// OrderedDict and the rebuilding of a tensor. Anything else is an error, naming the opcode and
// where it stands.
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

// One open file. Immutable, so thread-safe; views live as long as it does.
class TorchCheckpoint {
 public:
  // NOT_FOUND: no such file. INVALID_ARGUMENT: not a checkpoint, compressed, or its pickle holds
  // something else than described above.
  static absl::StatusOr<std::unique_ptr<TorchCheckpoint>> Open(absl::string_view path);
  // The same from bytes in memory, which must outlive the object.
  static absl::StatusOr<std::unique_ptr<TorchCheckpoint>> Parse(absl::Span<const uint8_t> bytes,
                                                                absl::string_view name);

  // In the order of the file. The name is the path of keys, joined by dots:
  // "evolution_state.mean".
  const std::vector<TensorView>& tensors() const { return tensors_; }
  const TensorView* FindTensor(absl::string_view name) const;  // null: no such tensor
  // Numbers, truth values and texts that are no tensors, under the same kind of name. Truth values
  // are 0 and 1.
  const std::map<std::string, double>& numbers() const { return numbers_; }
  const std::map<std::string, std::string>& texts() const { return texts_; }

 private:
  TorchCheckpoint(absl::Span<const uint8_t> bytes, std::string path)
      : path_(std::move(path)), bytes_(bytes) {}
  absl::Status ReadAll();

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  absl::Span<const uint8_t> bytes_;
  std::vector<TensorView> tensors_;
  // Elements of tensors that are no dense block of their storage.
  std::vector<std::unique_ptr<std::vector<uint8_t>>> copies_;
  absl::flat_hash_map<std::string, size_t> tensor_index_;
  std::map<std::string, double> numbers_;
  std::map<std::string, std::string> texts_;
};

}  // namespace mneme::weights

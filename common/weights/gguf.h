// Reads GGUF files (versions 2 and 3, little-endian): metadata and tensors of a llama.cpp model.
//
// Nothing in the file is believed: every count, length, type, alignment and offset is checked
// against the file's size before it is used. A bad file gets INVALID_ARGUMENT naming the key or
// tensor, the byte offset and what to do. Opening costs one pass over the header; metadata values
// stay in the mapping and are decoded when asked for.
#pragma once

#include <cstdint>
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

// Type codes of metadata values, as stored.
enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// An open GGUF file. Immutable, so thread-safe. All views and string_views point into the mapping
// (or the bytes given to Parse) and live as long as this object.
class GgufFile {
 public:
  // Maps and checks a file.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(absl::string_view path);
  // The same from bytes in memory, which must be 16-byte aligned and outlive the object. `name`
  // stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(absl::Span<const uint8_t> bytes,
                                                         absl::string_view name);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  // Bytes of the whole file, and those before the tensors' data (header, metadata, tensor table).
  absl::Span<const uint8_t> bytes() const { return bytes_; }
  absl::Span<const uint8_t> header_bytes() const { return bytes_.subspan(0, data_offset_); }

  // Metadata. NOT_FOUND: the key is missing; INVALID_ARGUMENT: it holds another type or a value out
  // of the asked range. Both name the key.
  bool Has(absl::string_view key) const { return values_.contains(key); }
  // Any integer type that fits; a bool is not an integer.
  absl::StatusOr<int64_t> GetInt(absl::string_view key) const;
  // Float32, float64 or any integer.
  absl::StatusOr<double> GetFloat(absl::string_view key) const;
  absl::StatusOr<bool> GetBool(absl::string_view key) const;
  absl::StatusOr<absl::string_view> GetString(absl::string_view key) const;  // not always UTF-8
  absl::StatusOr<std::vector<absl::string_view>> GetStrings(absl::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloats(absl::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> GetInts(absl::string_view key) const;
  absl::StatusOr<std::vector<bool>> GetBools(absl::string_view key) const;
  // The same with a default for a missing key; a wrong type is still an error.
  absl::StatusOr<int64_t> GetIntOr(absl::string_view key, int64_t missing) const;
  absl::StatusOr<double> GetFloatOr(absl::string_view key, double missing) const;
  absl::StatusOr<bool> GetBoolOr(absl::string_view key, bool missing) const;
  absl::StatusOr<absl::string_view> GetStringOr(absl::string_view key,
                                                absl::string_view missing) const;
  // Number of elements of an array. For the vocabulary's size, without building the vector.
  absl::StatusOr<uint64_t> GetArraySize(absl::string_view key) const;
  // All keys, in the file's order.
  const std::vector<absl::string_view>& keys() const { return keys_; }

  // Tensors in the file's order. Shapes are turned outermost first (GGUF stores them reversed).
  const std::vector<TensorView>& tensors() const { return tensors_; }
  // Null when there is none of this name.
  const TensorView* FindTensor(absl::string_view name) const;

 private:
  struct Value {
    GgufType type = GgufType::kUint8;
    GgufType element_type = GgufType::kUint8;  // arrays only
    uint64_t count = 0;                        // arrays only
    uint64_t offset = 0;                       // of the value's (first element's) bytes
  };
  class Reader;

  GgufFile(absl::Span<const uint8_t> bytes, std::string path)
      : path_(std::move(path)), bytes_(bytes) {}
  absl::Status ReadAll();
  absl::Status ReadMetadata(Reader& reader, uint64_t count);
  absl::Status ReadTensorTable(Reader& reader, uint64_t count);
  absl::Status PlaceTensors();
  absl::StatusOr<const Value*> FindValue(absl::string_view key) const;
  absl::StatusOr<const Value*> FindArray(absl::string_view key) const;
  absl::StatusOr<int64_t> IntAt(absl::string_view key, GgufType type, uint64_t offset) const;
  absl::StatusOr<double> FloatAt(absl::string_view key, GgufType type, uint64_t offset) const;
  absl::Status WrongType(absl::string_view key, const Value& value, absl::string_view asked) const;

  std::string path_;
  std::unique_ptr<MappedFile> file_;  // null for Parse
  absl::Span<const uint8_t> bytes_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t data_offset_ = 0;
  std::vector<absl::string_view> keys_;
  absl::flat_hash_map<absl::string_view, Value> values_;
  std::vector<TensorView> tensors_;
  absl::flat_hash_map<absl::string_view, size_t> tensor_index_;
};

// Returns the name llama.cpp gives to a `general.file_type` ("Q4_K_M"), or "" for an unknown one.
absl::string_view GgufFileTypeName(int64_t file_type);

}  // namespace mneme::weights

// Describes a tensor that lies in a mapped model file: type, shape and where its bytes are. No
// LibTorch here: common/model wraps these views into tensors, kernels read the bytes in place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::weights {

// Element types of GGUF and safetensors files. The Q types are blocks of 32 or 256 elements with
// their scales (layouts in dequantize.h).
enum class TensorType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  kF64,
  kBool,
  kF8E4M3,  // safetensors F8_E4M3
  kF8E5M2,  // safetensors F8_E5M2
};

// Returns "F32", "Q4_K", … as the file formats write them.
absl::string_view TypeName(TensorType type);
// Returns how many elements one block holds: 1 for plain types, 32 or 256 for the Q types.
int64_t BlockSize(TensorType type);
// Returns the bytes of one block; for plain types of one element.
int64_t BytesPerBlock(TensorType type);
// Says whether elements come in blocks with scales.
bool IsQuantized(TensorType type);

// Returns the product of the dimensions (1 for none); nothing if one is negative or the product
// passes 2^62.
std::optional<int64_t> CountElements(absl::Span<const int64_t> shape);
// Returns the bytes that a dense tensor takes. INVALID_ARGUMENT: overflow, or rows that are no
// whole number of blocks.
absl::StatusOr<uint64_t> ByteSize(TensorType type, absl::Span<const int64_t> shape);

// One tensor of a file. The bytes belong to the file object that handed the view out.
struct TensorView {
  std::string name;  // as the file writes it
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // row-major, outermost first; blocks run along the last dimension
  const uint8_t* data = nullptr;
  uint64_t size_bytes = 0;
  uint64_t file_offset = 0;  // of `data` in its file, for messages

  int64_t num_elements() const { return CountElements(shape).value_or(0); }
  // Elements of one innermost row; 1 for a scalar.
  int64_t row_size() const { return shape.empty() ? 1 : shape.back(); }
  int64_t row_bytes() const { return row_size() / BlockSize(type) * BytesPerBlock(type); }
  int64_t num_rows() const { return row_size() == 0 ? 0 : num_elements() / row_size(); }
  // Says whether `data` may be read as an array of its elements (safetensors files may be unpadded;
  // copy such a tensor before use). GGUF tensors are always aligned.
  bool is_aligned() const;
  // "Q4_1 [576, 1536]".
  std::string Describe() const;
};

}  // namespace mneme::weights

#include "common/weights/tensor_view.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mneme::weights {
namespace {

struct TypeInfo {
  absl::string_view name;
  int64_t block_size;
  int64_t block_bytes;
};

// In the order of TensorType.
constexpr TypeInfo kTypes[] = {
    {"F32", 1, 4},      {"F16", 1, 2},    {"BF16", 1, 2},   {"Q8_0", 32, 34},   {"Q4_0", 32, 18},
    {"Q4_1", 32, 20},   {"Q5_0", 32, 22}, {"Q5_1", 32, 24}, {"Q4_K", 256, 144}, {"Q5_K", 256, 176},
    {"Q6_K", 256, 210}, {"I8", 1, 1},     {"I16", 1, 2},    {"I32", 1, 4},      {"I64", 1, 8},
    {"U8", 1, 1},       {"F64", 1, 8},    {"BOOL", 1, 1},   {"F8_E4M3", 1, 1},  {"F8_E5M2", 1, 1},
};
static_assert(std::size(kTypes) == static_cast<size_t>(TensorType::kF8E5M2) + 1);

const TypeInfo& Info(TensorType type) { return kTypes[static_cast<size_t>(type)]; }

constexpr int64_t kMaxElements = int64_t{1} << 62;

}  // namespace

absl::string_view TypeName(TensorType type) { return Info(type).name; }
int64_t BlockSize(TensorType type) { return Info(type).block_size; }
int64_t BytesPerBlock(TensorType type) { return Info(type).block_bytes; }
bool IsQuantized(TensorType type) { return Info(type).block_size > 1; }

std::optional<int64_t> CountElements(absl::Span<const int64_t> shape) {
  // A zero anywhere makes the product zero, but the others must still be in bounds: strides are
  // computed from them.
  int64_t product = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size == 0) {
      empty = true;
    } else if (product > kMaxElements / size) {
      return std::nullopt;
    } else {
      product *= size;
    }
  }
  return empty ? 0 : product;
}

absl::StatusOr<uint64_t> ByteSize(TensorType type, absl::Span<const int64_t> shape) {
  const std::optional<int64_t> count = CountElements(shape);
  const TypeInfo& info = Info(type);
  if (!count.has_value() || *count / info.block_size > kMaxElements / info.block_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("shape is negative or too large: [", absl::StrJoin(shape, ", "), "]"));
  }
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row % info.block_size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("rows are no whole number of ", info.name,
                                                   " blocks of ", info.block_size, ": [",
                                                   absl::StrJoin(shape, ", "), "]"));
  }
  return static_cast<uint64_t>(*count / info.block_size * info.block_bytes);
}

bool TensorView::is_aligned() const {
  // Block structures hold nothing wider than a half.
  const uintptr_t alignment = IsQuantized(type) ? 2 : static_cast<uintptr_t>(BytesPerBlock(type));
  return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

std::string TensorView::Describe() const {
  return absl::StrCat(TypeName(type), " [", absl::StrJoin(shape, ", "), "]");
}

}  // namespace mneme::weights

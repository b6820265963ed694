// The number formats that weights come in, as they lie in a file: plain floats and the block
// formats of GGUF. kernels/linear.h computes with all of them without expanding them to floats in
// memory.
#pragma once

#include <cstdint>

namespace mneme::kernels {

enum class WeightType : int32_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kQ8_0 = 3,
  kQ4_0 = 4,
  kQ4_1 = 5,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ4K = 8,
  kQ5K = 9,
  kQ6K = 10,
};
inline constexpr int kNumWeightTypes = 11;

// Returns the type's name as GGUF writes it ("Q4_1").
const char* WeightTypeName(WeightType type);

// Returns how many consecutive elements of a row share one block (1 for floats, 32 or 256).
int64_t BlockElements(WeightType type);

// Returns the bytes of one such block in the file.
int64_t BlockBytes(WeightType type);

// Returns the bytes of a row of `k` elements; `k` must be a multiple of BlockElements.
int64_t RowBytes(WeightType type, int64_t k);

// Writes the `k` exact values of one row, as it lies in the file, to `out`. Slow and plain: for
// packing, tests and small tensors.
void DequantizeRow(WeightType type, const void* row, int64_t k, float* out);

}  // namespace mneme::kernels

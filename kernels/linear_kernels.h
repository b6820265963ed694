// The inner loops of linear.h for one instruction set, as a table: linear_cpu.cc picks a table and
// does everything around them. A "tile" is 16 rows of a matrix (see linear_layout.h).
#pragma once

#include <cstdint>

#include "kernels/linear_layout.h"
#include "kernels/weight_type.h"

namespace mneme::kernels {

// A row of inputs rounded to 8 bits, for Precision::kFast. Per block of 32 elements x:
//   scale = max|x| / 127, q = round to nearest even (x * (127 / max|x|)), x ~ scale * q
// In memory: q int8 [K], then float scale [K/32], float sum of the rounded elements [K/32] and
// [K/16], and int32 sum of q [K/32].
struct RoundedRow {
  static int64_t Bytes(int64_t k) { return (k + k / kBlock * 20 + 63) / 64 * 64; }
  static float* Scale(void* row, int64_t k) {
    return reinterpret_cast<float*>(static_cast<uint8_t*>(row) + k);
  }
  static const float* Scale(const void* row, int64_t k) {
    return reinterpret_cast<const float*>(static_cast<const uint8_t*>(row) + k);
  }
  // Offsets in floats from Scale.
  static int64_t Sum(int64_t k) { return k / kBlock; }
  static int64_t HalfSum(int64_t k) { return 2 * (k / kBlock); }
  static int64_t IntSum(int64_t k) { return 4 * (k / kBlock); }
};

inline constexpr int kMaxTileTokens = 128;  // that `exact`, `floats` and `many` take in one call
// `many` takes tokens by so many: rounded rows are followed by room up to a multiple of it.
inline constexpr int kManyUnit = 16;

struct LinearKernels {
  // Rounds a row of k (a multiple of 32) elements.
  void (*round)(const float* x, int64_t k, void* row);

  // sums[t][0..16) = tile times row t, for `tokens` <= fast_tokens rounded rows `stride` bytes
  // apart.
  using Fast = void (*)(const uint8_t* tile, int64_t k, const uint8_t* rows, int64_t stride,
                        float* sums);
  Fast fast[kNumWeightTypes][8];  // [type][tokens - 1]
  int fast_tokens;

  // The same, bit for bit, for up to kMaxTileTokens rows. Reads rows, and writes sums, up to the
  // next multiple of kManyUnit tokens. Null: the instruction set has no faster way.
  void (*many[kNumWeightTypes])(const uint8_t* tile, int64_t k, const uint8_t* rows, int64_t stride,
                                int tokens, float* sums);

  // The same for float rows, x_stride elements apart, and exact weights.
  void (*exact[kNumWeightTypes])(const uint8_t* tile, int64_t k, const float* x, int64_t x_stride,
                                 int tokens, float* sums);

  // The same for float matrices, row by row as in the file; num_rows <= 16.
  void (*floats[kNumWeightTypes])(const uint8_t* rows, int64_t row_bytes, int num_rows, int64_t k,
                                  const float* x, int64_t x_stride, int tokens, float* sums);

  // out[0..k) = row `row` of the tile, exactly.
  void (*dequantize[kNumWeightTypes])(const uint8_t* tile, int64_t k, int row, float* out);

  // out[i] = silu(gate[i]) * up[i].
  void (*silu_mul)(const float* gate, const float* up, int64_t width, float* out);
};

// Returns the table of CurrentVariant().
const LinearKernels& CurrentLinearKernels();

const LinearKernels& PortableLinearKernels();
const LinearKernels& Avx2LinearKernels();
const LinearKernels& Avx512LinearKernels();
const LinearKernels& AmxLinearKernels();

}  // namespace mneme::kernels

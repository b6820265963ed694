// How a quantised matrix lies in memory once packed: the rows in tiles of 16, and within a tile the
// bytes in the order in which a kernel reads them. Nothing is lost, and but for the 6-bit scales of
// Q4_K and Q5_K (kept as bytes) nothing grows.
//
// A tile has three planes, one after the other, each a sequence of blocks of 32 columns:
//   quants  four columns of a row make one 32-bit lane, the 16 rows one vector of 64 bytes.
//           8-bit types: 8 vectors, vector s has columns 4s..4s+3.
//           Others: 4 vectors, the low nibbles of vector j have columns 8j..8j+3, the high ones
//           8j+4..8j+7.
//   high    the fifth bits: one vector; byte i of a lane has at bit s that of column 4s + i.
//           The fifth and sixth bits: two vectors; byte i of a lane of vector s / 4 has at bits
//           2 * (s % 4) those of column 4s + i.
//   scales  for each block (of 32, or 256 for the K types) what the file has, for 16 rows at a
//   time:
//           float16 scale, then float16 min if any; K types then one byte per sub-scale, Q4_K and
//           Q5_K also one byte per sub-min.
// Rows that fill up the last tile have scale zero.
#pragma once

#include <cstdint>

#include "kernels/weight_type.h"

namespace mneme::kernels {

inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kBlock = 32;  // columns

struct TileLayout {
  int64_t quant_bytes = 0;  // of a block of 32 columns
  int64_t high_bytes = 0;   // of a block of 32 columns
  int64_t scale_bytes = 0;  // of a block of scale_columns
  int64_t scale_columns = kBlock;

  int64_t TileBytes(int64_t k) const {
    const int64_t bytes = k / kBlock * (quant_bytes + high_bytes) + k / scale_columns * scale_bytes;
    return (bytes + 63) / 64 * 64;
  }
};

inline constexpr TileLayout LayoutOf(WeightType type) {
  switch (type) {
    case WeightType::kQ8_0:
      return {512, 0, 32, 32};
    case WeightType::kQ4_0:
      return {256, 0, 32, 32};
    case WeightType::kQ4_1:
      return {256, 0, 64, 32};
    case WeightType::kQ5_0:
      return {256, 64, 32, 32};
    case WeightType::kQ5_1:
      return {256, 64, 64, 32};
    case WeightType::kQ4K:
      return {256, 0, 320, 256};
    case WeightType::kQ5K:
      return {256, 64, 320, 256};
    case WeightType::kQ6K:
      return {256, 128, 288, 256};
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      break;
  }
  return {};
}

inline constexpr bool IsFloatType(WeightType type) {
  return type == WeightType::kF32 || type == WeightType::kF16 || type == WeightType::kBF16;
}

}  // namespace mneme::kernels

#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstring>

#include "kernels/linear_layout.h"
#include "kernels/parallel.h"
#include "kernels/weight_type.h"

namespace mneme::kernels {
namespace {

// One block of 32 columns of one row, taken apart: `quants` are unsigned, but for Q8_0.
void ReadQuants(WeightType type, const uint8_t* row, int64_t b, uint8_t* quants) {
  const uint8_t* p = row + b / (BlockElements(type) / kBlock) * BlockBytes(type);
  const int64_t s = b % (BlockElements(type) / kBlock);  // which 32 of the 256 of a K block
  switch (type) {
    case WeightType::kQ8_0:
      std::memcpy(quants, p + 2, 32);
      return;
    case WeightType::kQ4_0:
    case WeightType::kQ4_1:
    case WeightType::kQ5_0:
    case WeightType::kQ5_1: {
      const bool five = type == WeightType::kQ5_0 || type == WeightType::kQ5_1;
      const bool has_min = type == WeightType::kQ4_1 || type == WeightType::kQ5_1;
      const uint8_t* q = p + (has_min ? 4 : 2);
      uint32_t high = 0;
      if (five) {
        std::memcpy(&high, q, 4);
        q += 4;
      }
      for (int i = 0; i < 16; ++i) {
        quants[i] = static_cast<uint8_t>((q[i] & 15) | ((high >> i) & 1) << 4);
        quants[i + 16] = static_cast<uint8_t>((q[i] >> 4) | ((high >> (i + 16)) & 1) << 4);
      }
      return;
    }
    case WeightType::kQ4K:
    case WeightType::kQ5K: {
      const bool five = type == WeightType::kQ5K;
      const uint8_t* high = p + 16;
      const uint8_t* low = p + (five ? 48 : 16) + s / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        const int nibble = s % 2 == 0 ? low[i] & 15 : low[i] >> 4;
        const int bit = five ? (high[i] >> s) & 1 : 0;
        quants[i] = static_cast<uint8_t>(nibble | bit << 4);
      }
      return;
    }
    case WeightType::kQ6K: {
      const int64_t run = s % 4;
      const uint8_t* low = p + s / 4 * 64 + run % 2 * 32;
      const uint8_t* high = p + 128 + s / 4 * 32;
      for (int i = 0; i < 32; ++i) {
        const int nibble = run < 2 ? low[i] & 15 : low[i] >> 4;
        quants[i] = static_cast<uint8_t>(nibble | ((high[i] >> (2 * run)) & 3) << 4);
      }
      return;
    }
    case WeightType::kF32:
    case WeightType::kF16:
    case WeightType::kBF16:
      return;
  }
}

// Writes the scales of one block of the file, of row `r` of a tile.
void WriteScales(WeightType type, const uint8_t* p, int64_t r, uint8_t* scales) {
  switch (type) {
    case WeightType::kQ6K:
      std::memcpy(scales + 2 * r, p + 208, 2);
      for (int i = 0; i < 16; ++i) scales[32 + i * 16 + r] = p[192 + i];
      return;
    case WeightType::kQ4K:
    case WeightType::kQ5K: {
      std::memcpy(scales + 2 * r, p, 2);
      std::memcpy(scales + 32 + 2 * r, p + 2, 2);
      const uint8_t* packed = p + 4;
      for (int i = 0; i < 8; ++i) {
        const int scale = i < 4 ? packed[i] & 63 : (packed[i + 4] & 15) | packed[i - 4] >> 6 << 4;
        const int min = i < 4 ? packed[i + 4] & 63 : packed[i + 4] >> 4 | packed[i] >> 6 << 4;
        scales[64 + i * 16 + r] = static_cast<uint8_t>(scale);
        scales[192 + i * 16 + r] = static_cast<uint8_t>(min);
      }
      return;
    }
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
      std::memcpy(scales + 32 + 2 * r, p + 2, 2);
      [[fallthrough]];
    default:
      std::memcpy(scales + 2 * r, p, 2);
  }
}

void PackRow(WeightType type, const uint8_t* row, int64_t k, int64_t r, uint8_t* tile) {
  const TileLayout layout = LayoutOf(type);
  uint8_t* const high_plane = tile + k / kBlock * layout.quant_bytes;
  uint8_t* const scale_plane = high_plane + k / kBlock * layout.high_bytes;
  uint8_t quants[kBlock];
  for (int64_t b = 0; b < k / kBlock; ++b) {
    ReadQuants(type, row, b, quants);
    uint8_t* to = tile + b * layout.quant_bytes + 4 * r;
    uint8_t* high = high_plane + b * layout.high_bytes + 4 * r;
    for (int c = 0; c < kBlock; ++c) {
      const int step = c / 4;
      const int byte = c % 4;
      if (layout.quant_bytes == 512) {
        to[step * 64 + byte] = quants[c];
        continue;
      }
      to[step / 2 * 64 + byte] |= static_cast<uint8_t>((quants[c] & 15) << (step % 2 * 4));
      const int rest = quants[c] >> 4;
      if (layout.high_bytes == 64) high[byte] |= static_cast<uint8_t>(rest << step);
      if (layout.high_bytes == 128) {
        high[step / 4 * 64 + byte] |= static_cast<uint8_t>(rest << (step % 4 * 2));
      }
    }
  }
  for (int64_t b = 0; b < k / layout.scale_columns; ++b) {
    WriteScales(type, row + b * BlockBytes(type), r, scale_plane + b * layout.scale_bytes);
  }
}

at::Tensor PackWeightCpu(const at::Tensor& data, int64_t type_number, int64_t rows, int64_t k,
                         const std::optional<at::Tensor>& row_order) {
  const auto type = static_cast<WeightType>(type_number);
  const int64_t row_bytes = RowBytes(type, k);
  const uint8_t* from = data.const_data_ptr<uint8_t>();
  const int64_t* order = row_order.has_value() ? row_order->const_data_ptr<int64_t>() : nullptr;
  for (int64_t r = 0; order != nullptr && r < rows; ++r) {
    TORCH_CHECK_INDEX(order[r] >= 0 && order[r] < rows, "pack_weight: row_order holds ", order[r],
                      ", the matrix has only ", rows, " rows");
  }
  const auto row = [&](int64_t r) { return from + (order == nullptr ? r : order[r]) * row_bytes; };
  if (IsFloatType(type)) {
    if (order == nullptr) return data;
    at::Tensor ordered = at::empty_like(data);
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(ordered.mutable_data_ptr<uint8_t>() + r * row_bytes, row(r), row_bytes);
    }
    return ordered;
  }
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t tile_bytes = LayoutOf(type).TileBytes(k);
  at::Tensor packed = at::zeros({tiles * tile_bytes}, data.options());
  auto* to = packed.mutable_data_ptr<uint8_t>();
  ParallelFor(tiles, [&](int64_t t) {
    for (int64_t r = 0; r < kTileRows && t * kTileRows + r < rows; ++r) {
      PackRow(type, row(t * kTileRows + r), k, r, to + t * tile_bytes);
    }
  });
  return packed;
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) { m.impl("pack_weight", mneme::kernels::PackWeightCpu); }

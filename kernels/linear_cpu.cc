// Divides a product among the threads and writes its results; the arithmetic is in linear_tile.h.
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>

#include "kernels/cpu_features.h"
#include "kernels/linear_kernels.h"
#include "kernels/parallel.h"
#include "kernels/scratch.h"

namespace mneme::kernels {
namespace {

// Rows of inputs that one task goes through per tile: their rounded form stays in the second-level
// cache while the tiles stream past.
constexpr int64_t kTaskTokens = kMaxTileTokens;
// A task reads at least about this much weight, or its hand-over would cost more than its work.
constexpr int64_t kMinTaskBytes = 8192;
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kRoundRowsPerTask = 16;

// One of the matrices of a PackedLinear.
struct Segment {
  Segment(const at::Tensor& tensor, int64_t type_number, int64_t num_rows, int64_t k)
      : type(static_cast<WeightType>(type_number)),
        index(static_cast<int>(type_number)),
        is_float(IsFloatType(type)),
        data(tensor.const_data_ptr<uint8_t>()),
        rows(num_rows),
        tiles((num_rows + kTileRows - 1) / kTileRows),
        tile_bytes(is_float ? kTileRows * RowBytes(type, k) : LayoutOf(type).TileBytes(k)) {
    const int64_t needed = is_float ? rows * RowBytes(type, k) : tiles * tile_bytes;
    TORCH_CHECK_VALUE(tensor.numel() >= needed, "linear: packed ", WeightTypeName(type),
                      " weight has ", tensor.numel(), " bytes, needs ", needed);
  }

  WeightType type;
  int index;
  bool is_float;
  const uint8_t* data;
  int64_t rows;
  int64_t tiles;
  int64_t tile_bytes;
};

// The matrices of one weight; a handful at most, so that no call allocates.
struct Segments {
  Segments(at::TensorList weights, at::IntArrayRef types, at::IntArrayRef rows, int64_t k) {
    TORCH_CHECK_VALUE(weights.size() <= list.size() && types.size() == weights.size() &&
                          rows.size() == weights.size(),
                      "linear: ", weights.size(), " matrices in one weight, at most ", list.size());
    for (; size < weights.size(); ++size) {
      list[size].emplace(weights[size], types[size], rows[size], k);
    }
  }

  const Segment& operator[](size_t i) const { return *list[i]; }

  std::array<std::optional<Segment>, 8> list;
  size_t size = 0;
};

// The inputs of a call, and their rounded form where a segment wants it.
struct Inputs {
  const float* x;
  int64_t stride;
  int64_t k;
  int64_t tokens;
  const uint8_t* rounded;
  int64_t rounded_stride;
};

Inputs MakeInputs(const LinearKernels& kernels, const at::Tensor& x, const Segments& segments,
                  bool fast) {
  Inputs inputs = {x.const_data_ptr<float>(), x.stride(0), x.size(1), x.size(0), nullptr, 0};
  bool any_quantised = false;
  for (size_t s = 0; s < segments.size; ++s) any_quantised |= !segments[s].is_float;
  if (!fast || !any_quantised) return inputs;
  inputs.rounded_stride = RoundedRow::Bytes(inputs.k);
  thread_local Scratch scratch;
  const int64_t room = (inputs.tokens + kManyUnit - 1) / kManyUnit * kManyUnit;
  auto* rounded = static_cast<uint8_t*>(scratch.Get(inputs.rounded_stride * room));
  ParallelFor((inputs.tokens + kRoundRowsPerTask - 1) / kRoundRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(inputs.tokens, (task + 1) * kRoundRowsPerTask);
    for (int64_t t = task * kRoundRowsPerTask; t < end; ++t) {
      kernels.round(inputs.x + t * inputs.stride, inputs.k, rounded + t * inputs.rounded_stride);
    }
  });
  inputs.rounded = rounded;
  return inputs;
}

int64_t GroupTokens(const LinearKernels& kernels, const Segment& segment, const Inputs& inputs) {
  if (segment.is_float || inputs.rounded == nullptr) return kMaxTileTokens;
  return kernels.many[segment.index] != nullptr ? kMaxTileTokens : kernels.fast_tokens;
}

// sums[t][0..16) for tokens [first, first + count) and one tile.
void RunTile(const LinearKernels& kernels, const Segment& segment, int64_t tile,
             const Inputs& inputs, int64_t first, int64_t count, float* sums) {
  const uint8_t* data = segment.data + tile * segment.tile_bytes;
  const float* x = inputs.x + first * inputs.stride;
  const auto tokens = static_cast<int>(count);
  if (segment.is_float) {
    const auto rows = static_cast<int>(std::min(kTileRows, segment.rows - tile * kTileRows));
    kernels.floats[segment.index](data, segment.tile_bytes / kTileRows, rows, inputs.k, x,
                                  inputs.stride, tokens, sums);
  } else if (inputs.rounded == nullptr) {
    kernels.exact[segment.index](data, inputs.k, x, inputs.stride, tokens, sums);
  } else {
    const uint8_t* rounded = inputs.rounded + first * inputs.rounded_stride;
    if (tokens > kernels.fast_tokens) {
      kernels.many[segment.index](data, inputs.k, rounded, inputs.rounded_stride, tokens, sums);
    } else {
      kernels.fast[segment.index][tokens - 1](data, inputs.k, rounded, inputs.rounded_stride, sums);
    }
  }
}

// Calls body(tile, first token, end token) over all tiles and tokens, in parallel.
template <typename Body>
void ForTiles(int64_t tiles, int64_t tile_bytes, int64_t tokens, const Body& body) {
  const int64_t blocks = (tokens + kTaskTokens - 1) / kTaskTokens;
  const int64_t wanted = std::max<int64_t>(1, NumThreads() * kTasksPerThread / blocks);
  const int64_t least = std::max<int64_t>(1, kMinTaskBytes / std::max<int64_t>(1, tile_bytes));
  const int64_t per_task = std::max(least, (tiles + wanted - 1) / wanted);
  const int64_t chunks = (tiles + per_task - 1) / per_task;
  ParallelFor(chunks * blocks, [&](int64_t task) {
    const int64_t first = task / chunks * kTaskTokens;
    const int64_t end = std::min(tokens, first + kTaskTokens);
    const int64_t chunk = task % chunks;
    for (int64_t t = chunk * per_task; t < std::min(tiles, (chunk + 1) * per_task); ++t) {
      body(t, first, end);
    }
  });
}

void LinearCpu(const at::Tensor& x, at::TensorList weights, at::IntArrayRef types,
               at::IntArrayRef rows, const std::optional<at::Tensor>& bias_tensor, bool accumulate,
               bool fast, const at::Tensor& out) {
  const LinearKernels& kernels = CurrentLinearKernels();
  const Segments segments(weights, types, rows, x.size(1));
  const Inputs inputs = MakeInputs(kernels, x, segments, fast);
  const float* bias = bias_tensor.has_value() ? bias_tensor->const_data_ptr<float>() : nullptr;
  float* y = out.mutable_data_ptr<float>();
  const int64_t y_stride = out.stride(0);
  int64_t tiles = 0;
  int64_t bytes = 0;
  for (size_t s = 0; s < segments.size; ++s) {
    tiles += segments[s].tiles;
    bytes += segments[s].tiles * segments[s].tile_bytes;
  }
  if (tiles == 0) return;
  ForTiles(tiles, bytes / tiles, inputs.tokens, [&](int64_t tile, int64_t begin, int64_t end) {
    size_t s = 0;
    int64_t column = 0;
    while (tile >= segments[s].tiles) {
      tile -= segments[s].tiles;
      column += segments[s].rows;
      ++s;
    }
    const Segment& segment = segments[s];
    column += tile * kTileRows;
    const int64_t width = std::min(kTileRows, segment.rows - tile * kTileRows);
    const int64_t group = GroupTokens(kernels, segment, inputs);
    alignas(64) float sums[kMaxTileTokens * kTileRows];
    for (int64_t first = begin; first < end; first += group) {
      const int64_t count = std::min(group, end - first);
      RunTile(kernels, segment, tile, inputs, first, count, sums);
      for (int64_t t = 0; t < count; ++t) {
        float* sum = sums + t * kTileRows;
        float* to = y + (first + t) * y_stride + column;
        if (bias != nullptr) {
          for (int64_t i = 0; i < width; ++i) sum[i] += bias[column + i];
        }
        if (accumulate) {
          for (int64_t i = 0; i < width; ++i) to[i] += sum[i];
        } else if (width == kTileRows) {  // a copy of a size that the compiler knows
          std::memcpy(to, sum, kTileRows * sizeof(float));
        } else {
          std::memcpy(to, sum, static_cast<size_t>(width) * sizeof(float));
        }
      }
    }
  });
}

void LinearSiluMulCpu(const at::Tensor& x, at::TensorList weights, at::IntArrayRef types,
                      at::IntArrayRef rows, bool fast, const at::Tensor& out) {
  const LinearKernels& kernels = CurrentLinearKernels();
  const Segments segments(weights, types, rows, x.size(1));
  const Inputs inputs = MakeInputs(kernels, x, segments, fast);
  const Segment& gate = segments[0];
  const Segment& up = segments[1];
  float* y = out.mutable_data_ptr<float>();
  const int64_t y_stride = out.stride(0);
  const int64_t group =
      std::min(GroupTokens(kernels, gate, inputs), GroupTokens(kernels, up, inputs));
  ForTiles(gate.tiles, gate.tile_bytes + up.tile_bytes, inputs.tokens,
           [&](int64_t tile, int64_t begin, int64_t end) {
             const int64_t column = tile * kTileRows;
             const int64_t width = std::min(kTileRows, gate.rows - column);
             alignas(64) float gates[kMaxTileTokens * kTileRows];
             alignas(64) float ups[kMaxTileTokens * kTileRows];
             for (int64_t first = begin; first < end; first += group) {
               const int64_t count = std::min(group, end - first);
               RunTile(kernels, gate, tile, inputs, first, count, gates);
               RunTile(kernels, up, tile, inputs, first, count, ups);
               for (int64_t t = 0; t < count; ++t) {
                 kernels.silu_mul(gates + t * kTileRows, ups + t * kTileRows, width,
                                  y + (first + t) * y_stride + column);
               }
             }
           });
}

void EmbeddingCpu(const at::Tensor& ids, at::TensorList weights, at::IntArrayRef types,
                  at::IntArrayRef rows, const at::Tensor& out) {
  const LinearKernels& kernels = CurrentLinearKernels();
  const int64_t k = out.size(1);
  const Segments segments(weights, types, rows, k);
  const bool narrow = ids.scalar_type() == at::kInt;
  const void* id_data = ids.const_data_ptr();
  const int64_t num_rows = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  const auto id_at = [&](int64_t t) -> int64_t {
    return narrow ? static_cast<const int32_t*>(id_data)[t]
                  : static_cast<const int64_t*>(id_data)[t];
  };
  for (int64_t t = 0; t < ids.size(0); ++t) {
    TORCH_CHECK_INDEX(id_at(t) >= 0 && id_at(t) < num_rows, "embedding: token id ", id_at(t),
                      " is not one of ", num_rows);
  }
  float* y = out.mutable_data_ptr<float>();
  const int64_t y_stride = out.stride(0);
  ParallelFor(ids.size(0), [&](int64_t t) {
    int64_t row = id_at(t);
    size_t s = 0;
    while (row >= segments[s].rows) row -= segments[s++].rows;
    const Segment& segment = segments[s];
    float* to = y + t * y_stride;
    if (segment.is_float) {
      DequantizeRow(segment.type, segment.data + row * (segment.tile_bytes / kTileRows), k, to);
    } else {
      kernels.dequantize[segment.index](segment.data + row / kTileRows * segment.tile_bytes, k,
                                        static_cast<int>(row % kTileRows), to);
    }
  });
}

}  // namespace

const LinearKernels& CurrentLinearKernels() {
  switch (CurrentVariant()) {
    case Variant::kAmx:
      return AmxLinearKernels();
    case Variant::kAvx512Vnni:
      return Avx512LinearKernels();
    case Variant::kAvx2:
      return Avx2LinearKernels();
    case Variant::kPortable:
      break;
  }
  return PortableLinearKernels();
}

}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) {
  m.impl("linear", mneme::kernels::LinearCpu);
  m.impl("linear_silu_mul", mneme::kernels::LinearSiluMulCpu);
  m.impl("embedding", mneme::kernels::EmbeddingCpu);
}

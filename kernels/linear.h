// y = x W^T for weights that stay as they are stored: quantised blocks are repacked once, without
// loss and at about their own size, into the order in which the machine reads them; floats are used
// where they lie.
//
// The result of a row of x does not depend, to the last bit, on the other rows of the call, on how
// many there are, nor on the number of threads. Batching therefore never changes a text.
//
// Arguments are checked; a wrong one throws c10::Error (std::exception) with a message. Everything
// here may be called from several threads at once, as long as outputs do not overlap.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/weight_type.h"

namespace mneme::kernels {

// A matrix as it lies in a file: `rows` rows, each of RowBytes(type, k) bytes.
struct WeightRows {
  WeightType type;
  int64_t rows;
  at::Tensor data;       // uint8, contiguous, rows * RowBytes bytes; kept alive if floats
  at::Tensor row_order;  // optional int64 [rows]: row i of the matrix is row row_order[i] of data
};

enum class Precision {
  kExact,  // float32 inputs times exactly dequantised weights, summed in float32
  kFast,   // inputs rounded to 8 bits per 32 elements where the weights are quantised
};

// One or more matrices of the same width K, one below the other, ready for Linear. A value: copies
// share the storage.
class PackedLinear {
 public:
  PackedLinear() = default;

  // Packs the matrices `segments`, each [rows, k], in this order. Quantised data is copied (and may
  // be unmapped afterwards); float data without row_order is not: it is used in place.
  static PackedLinear Create(const std::vector<WeightRows>& segments, int64_t k);

  int64_t k() const { return k_; }
  int64_t n() const { return n_; }  // rows of all segments together
  int64_t num_bytes() const;        // of all segments, as packed

  // For the operators: one packed uint8 tensor, type and row count per segment.
  const std::vector<at::Tensor>& data() const { return data_; }
  const std::vector<int64_t>& types() const { return types_; }
  const std::vector<int64_t>& rows() const { return rows_; }

 private:
  int64_t k_ = 0;
  int64_t n_ = 0;
  std::vector<at::Tensor> data_;
  std::vector<int64_t> types_;
  std::vector<int64_t> rows_;
};

// out = x W^T (+ bias), or out += x W^T (+ bias) if `accumulate`.
//   x    float32 [M, K], rows may be strided
//   bias float32 [N], optional
//   out  float32 [M, N], rows may be strided; must not overlap x
void LinearOut(const at::Tensor& x, const PackedLinear& weight, Precision precision,
               const at::Tensor& out, const std::optional<at::Tensor>& bias = std::nullopt,
               bool accumulate = false);

// out = silu(x Wg^T) * (x Wu^T), where `weight` holds the two matrices Wg and Wu of equal height,
// in this order. Bitwise equal to LinearOut followed by SiluMulOut.
//   x float32 [M, K], out float32 [M, N / 2]; rows of both may be strided
void LinearSiluMulOut(const at::Tensor& x, const PackedLinear& weight, Precision precision,
                      const at::Tensor& out);

// out[t] = row ids[t] of the matrix, exactly dequantised: the token embedding.
//   ids int32 or int64 [T], each in [0, N); out float32 [T, K], rows may be strided
void EmbeddingOut(const at::Tensor& ids, const PackedLinear& weight, const at::Tensor& out);

}  // namespace mneme::kernels

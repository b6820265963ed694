#include <ATen/Functions.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/parallel.h"
#include "kernels/weight_type.h"

namespace mneme::kernels {
namespace {

at::Tensor PackWeightCpu(const at::Tensor& data, int64_t type, int64_t rows, int64_t k,
                         const std::optional<at::Tensor>& row_order) {
  const int64_t row_bytes = RowBytes(static_cast<WeightType>(type), k);
  at::Tensor packed = at::empty_like(data);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = row_order.has_value() ? row_order->const_data_ptr<int64_t>()[r] : r;
    TORCH_CHECK_VALUE(from >= 0 && from < rows, "pack_weight: row_order holds ", from, " of ", rows,
                      " rows");
    std::memcpy(packed.mutable_data_ptr<uint8_t>() + r * row_bytes,
                data.const_data_ptr<uint8_t>() + from * row_bytes, row_bytes);
  }
  return packed;
}

void LinearCpu(const at::Tensor& x, at::TensorList weights, at::IntArrayRef types,
               at::IntArrayRef rows, const std::optional<at::Tensor>& bias, bool accumulate,
               bool /*fast*/, const at::Tensor& out) {
  const int64_t k = x.size(1);
  int64_t first = 0;
  for (size_t s = 0; s < weights.size(); ++s) {
    const auto type = static_cast<WeightType>(types[s]);
    const uint8_t* data = weights[s].const_data_ptr<uint8_t>();
    ParallelFor(rows[s], [&](int64_t n) {
      std::vector<float> row(k);
      DequantizeRow(type, data + n * RowBytes(type, k), k, row.data());
      for (int64_t m = 0; m < x.size(0); ++m) {
        const float* input = x.const_data_ptr<float>() + m * x.stride(0);
        float* y = out.mutable_data_ptr<float>() + m * out.stride(0) + first + n;
        float sum = 0;
        for (int64_t j = 0; j < k; ++j) sum += input[j] * row[j];
        if (bias.has_value()) sum += bias->const_data_ptr<float>()[first + n];
        *y = accumulate ? *y + sum : sum;
      }
    });
    first += rows[s];
  }
}

void LinearSiluMulCpu(const at::Tensor& x, at::TensorList weights, at::IntArrayRef types,
                      at::IntArrayRef rows, bool fast, const at::Tensor& out) {
  const int64_t n = rows[0];
  const at::Tensor both = at::empty({x.size(0), 2 * n}, x.options());
  LinearCpu(x, weights, types, rows, std::nullopt, false, fast, both);
  for (int64_t m = 0; m < x.size(0); ++m) {
    const float* gate = both.const_data_ptr<float>() + m * 2 * n;
    float* y = out.mutable_data_ptr<float>() + m * out.stride(0);
    for (int64_t j = 0; j < n; ++j) y[j] = gate[j] / (1.0f + std::exp(-gate[j])) * gate[n + j];
  }
}

void EmbeddingCpu(const at::Tensor& ids, at::TensorList weights, at::IntArrayRef types,
                  at::IntArrayRef rows, const at::Tensor& out) {
  const int64_t k = out.size(1);
  for (int64_t t = 0; t < ids.size(0); ++t) {
    int64_t id = ids.scalar_type() == at::kInt ? ids.const_data_ptr<int32_t>()[t]
                                               : ids.const_data_ptr<int64_t>()[t];
    TORCH_CHECK_INDEX(id >= 0, "embedding: negative token id ", id);
    size_t s = 0;
    while (s < rows.size() && id >= rows[s]) id -= rows[s++];
    TORCH_CHECK_INDEX(s < rows.size(), "embedding: token id is past the last row by ", id);
    const auto type = static_cast<WeightType>(types[s]);
    DequantizeRow(type, weights[s].const_data_ptr<uint8_t>() + id * RowBytes(type, k), k,
                  out.mutable_data_ptr<float>() + t * out.stride(0));
  }
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) {
  m.impl("pack_weight", mneme::kernels::PackWeightCpu);
  m.impl("linear", mneme::kernels::LinearCpu);
  m.impl("linear_silu_mul", mneme::kernels::LinearSiluMulCpu);
  m.impl("embedding", mneme::kernels::EmbeddingCpu);
}

// Checks shared by the operators' front functions: each throws c10::ValueError, naming the operator
// and the argument.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace mneme::kernels {

inline void CheckType(const at::Tensor& tensor, at::ScalarType type, int64_t dim, const char* op,
                      const char* name) {
  TORCH_CHECK_VALUE(tensor.defined(), op, ": ", name, " is missing");
  TORCH_CHECK_VALUE(tensor.scalar_type() == type, op, ": ", name, " must be ", type, ", not ",
                    tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, not ",
                    tensor.dim());
}

// As CheckType; also, elements of the last dimension must be adjacent.
inline void CheckRows(const at::Tensor& tensor, at::ScalarType type, int64_t dim, const char* op,
                      const char* name) {
  CheckType(tensor, type, dim, op, name);
  TORCH_CHECK_VALUE(tensor.stride(dim - 1) == 1 || tensor.size(dim - 1) <= 1, op, ": ", name,
                    " must have stride 1 in its last dimension, not ", tensor.stride(dim - 1));
}

inline void CheckSize(const at::Tensor& tensor, int64_t dim, int64_t size, const char* op,
                      const char* name) {
  TORCH_CHECK_VALUE(tensor.size(dim) == size, op, ": ", name, " must have size ", size,
                    " in dimension ", dim, ", not ", tensor.size(dim));
}

}  // namespace mneme::kernels

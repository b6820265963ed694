// Looks weights of the open_namm form up by name.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/memory/open_namm.h"

namespace mneme::memory::open_namm {

// Returns the tensor as float32; -1 in `shape` is any size. INVALID_ARGUMENT: it is missing or of
// another shape.
inline absl::StatusOr<at::Tensor> FindWeight(const Weights& weights, const std::string& name,
                                             const std::vector<int64_t>& shape) {
  const auto found = weights.find(name);
  if (found == weights.end()) return absl::InvalidArgumentError(absl::StrCat("no weight ", name));
  const at::Tensor& tensor = found->second;
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) {
    fits = shape[d] < 0 || tensor.size(static_cast<int64_t>(d)) == shape[d];
  }
  if (!fits) return absl::InvalidArgumentError(absl::StrCat("weight of another shape: ", name));
  return tensor.to(at::kFloat).contiguous();
}

}  // namespace mneme::memory::open_namm

// Finds weights by their Hugging Face names and packs them for the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/weights/model_files.h"
#include "common/weights/safetensors.h"
#include "kernels/linear.h"

namespace mneme::model {

// Used by one thread. Messages name the tensor. UNIMPLEMENTED: a type without kernels; INTERNAL or
// RESOURCE_EXHAUSTED: packing failed; NOT_FOUND, INVALID_ARGUMENT: no such tensor, a wrong width.
class WeightPacker {
 public:
  // Where `adapter` is not null, all tensors whose names contain "beacon" are its.
  WeightPacker(std::shared_ptr<const weights::ModelFiles> files,
               std::shared_ptr<const weights::SafetensorsModel> adapter, at::Device device)
      : files_(std::move(files)), adapter_(std::move(adapter)), device_(device) {}

  bool Has(const std::string& name) const;
  absl::StatusOr<weights::Weight> Find(const std::string& name) const;

  // Packs the weights `names`, all of width `k`, one below the other.
  absl::StatusOr<kernels::PackedLinear> Linear(const std::vector<std::string>& names, int64_t k);
  // Returns a weight decoded to float32, its rows in half-split order, of its own shape.
  absl::StatusOr<at::Tensor> Dense(const std::string& name) const;
  // Returns a float32 vector. [n]
  absl::StatusOr<at::Tensor> Vector(const std::string& name) { return Vectors({name}); }
  // Returns the float32 vectors `names`, one behind the other.
  absl::StatusOr<at::Tensor> Vectors(const std::vector<std::string>& names);

  const weights::ModelFiles& files() const { return *files_; }
  int64_t num_bytes() const { return num_bytes_; }  // of all that was packed

 private:
  bool IsOfAdapter(const std::string& name) const;
  absl::StatusOr<kernels::WeightRows> Rows(const std::string& name, int64_t k) const;
  at::Tensor HalfSplitOrder(int64_t rows) const;

  const std::shared_ptr<const weights::ModelFiles> files_;
  const std::shared_ptr<const weights::SafetensorsModel> adapter_;
  const at::Device device_;
  int64_t num_bytes_ = 0;
};

}  // namespace mneme::model

// Brings a model's weights from their files into the form that the kernels compute with.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/beacon_weights.h"
#include "common/weights/beacon_adapter.h"
#include "common/weights/model_files.h"
#include "kernels/linear.h"

namespace mneme::model {

// One decoder layer. Norms and biases are float32 vectors.
struct LayerWeights {
  at::Tensor attention_norm;               // [hidden]
  kernels::PackedLinear qkv;               // q, k and v, one below the other
  std::optional<at::Tensor> qkv_bias;      // [(Hq + 2 Hkv) * D]
  kernels::PackedLinear output;            // o_proj
  std::optional<at::Tensor> output_bias;   // [hidden]
  at::Tensor mlp_norm;                     // [hidden]
  kernels::PackedLinear gate_up;           // gate and up, one below the other
  std::optional<at::Tensor> gate_up_bias;  // [2 * intermediate]
  kernels::PackedLinear down;
  std::optional<at::Tensor> down_bias;  // [hidden]
};

struct ModelWeights {
  kernels::PackedLinear embedding;  // [V, hidden]
  std::vector<LayerWeights> layers;
  at::Tensor norm;                // [hidden]
  kernels::PackedLinear lm_head;  // the embedding itself where the model ties them
  BeaconWeights beacon;
  int64_t num_bytes = 0;  // of all, tied ones once
};

// Loads all weights of `files` to `device`. Rows of q and k that a GGUF file keeps in the order of
// interleaved rotation are put into half-split order, weights and biases. Float weights on the CPU
// stay mapped and keep `files` alive. UNIMPLEMENTED: a type without kernels; INTERNAL or
// RESOURCE_EXHAUSTED: packing failed. Messages name the tensor. `adapter`, where not null, has the
// beacon weights.
absl::StatusOr<ModelWeights> LoadWeights(
    const std::shared_ptr<const weights::ModelFiles>& files,
    const std::shared_ptr<const weights::BeaconAdapter>& adapter, at::Device device);

}  // namespace mneme::model

// The weights that Activation Beacon adds to a model (Zhang et al. 2024, arXiv 2401.03462): an
// embedding and, in every layer, projections that beacons have instead of the ordinary ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/weight_packer.h"
#include "common/weights/beacon_config.h"
#include "common/weights/model_config.h"
#include "kernels/linear.h"

namespace mneme::model {

// What beacons use in a layer; nothing: what tokens use.
struct BeaconLayerWeights {
  std::optional<kernels::PackedLinear> qkv;  // q, k and v, one below the other; all three
  std::optional<at::Tensor> qkv_bias;        // [(Hq + 2 Hkv) * D]
  std::optional<kernels::PackedLinear> output;
  std::optional<at::Tensor> output_bias;  // [hidden]
};

struct BeaconWeights {
  // float32 [1, hidden]; undefined where the model names no token to take it from.
  at::Tensor embedding;
  std::vector<BeaconLayerWeights> layers;
  // Some weights were found, not only copied from the base: the beacons have been trained.
  bool is_trained = false;
};

inline constexpr char kBeaconEmbedding[] = "model.beacon_embed_tokens.weight";

// Returns the token whose embedding untrained beacons have: the first end token, or the begin
// token; nothing where the model names none.
std::optional<int64_t> BeaconEmbeddingToken(const weights::ModelConfig& model,
                                            const weights::BeaconConfig& config);

// Which projections beacons have of their own in the files: all layers' tensors are there.
struct BeaconKinds {
  bool q = false;
  bool k = false;
  bool v = false;
  bool o = false;
};
// Of those that `config` speaks of. INVALID_ARGUMENT: a tensor of another shape than the base's.
absl::StatusOr<BeaconKinds> FindBeaconKinds(const WeightPacker& packer,
                                            const weights::ModelConfig& model,
                                            const weights::BeaconConfig& config);

// Loads the beacon weights that `config` speaks of. A kind (q, k, v, o, the embedding) of which a
// layer lacks its tensor is the base's in all layers: the ordinary projection, the embedding of the
// first end token (or the begin token). So every model has beacons, untrained. Codes as
// WeightPacker. INVALID_ARGUMENT: a tensor of another shape than the base's.
absl::StatusOr<BeaconWeights> LoadBeaconWeights(WeightPacker& packer,
                                                const weights::ModelConfig& model,
                                                const weights::BeaconConfig& config,
                                                const kernels::PackedLinear& embedding);

}  // namespace mneme::model

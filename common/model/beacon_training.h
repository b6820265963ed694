// Activation Beacon as it is trained (Zhang et al. 2024, arXiv 2401.03462): the loss of whole
// sequences, computed window by window with memory between them that gradients flow through, down
// to the beacons' own weights. The base model stays as it is.
//
//   ASSIGN_OR_RETURN(auto model, BeaconTraining::Load(files, nullptr, config, at::kCPU));
//   memory::BeaconSettings settings = memory::MakeBeaconSettings(files->config(), config);
//   settings.training = true;
//   memory::BeaconRatioState ratios = memory::FirstRatioState(settings);
//   ASSIGN_OR_RETURN(BeaconLoss loss, model->Loss(settings, tokens, labels, &ratios));
//   RETURN_IF_ERROR(CatchTorch("backward pass", [&] { loss.loss.backward(); }));
//   … model->parameters()[i].value.grad() …
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/memory/beacon_pass.h"
#include "common/memory/beacon_ratio.h"
#include "common/model/rotary_tables.h"
#include "common/weights/beacon_adapter.h"
#include "common/weights/beacon_config.h"
#include "common/weights/model_config.h"
#include "common/weights/model_files.h"

namespace mneme::model {

struct BeaconLoss {
  at::Tensor loss;             // float32 scalar with its graph: the mean over all targets
  at::Tensor sequence_losses;  // float32 [B], without graph; 0 for a sequence without targets
  int64_t num_targets = 0;
  std::vector<int64_t> ratios;  // those chosen, in order
};

// Plain float32 weights and LibTorch's own operators: for gradients, not for speed. Not
// thread-safe.
class BeaconTraining {
 public:
  // A weight that is trained, by its name in checkpoints.
  struct Parameter {
    std::string name;
    at::Tensor value;  // requires its gradient
  };

  // Loads a model and its beacons' weights; kinds of them that are missing, as LoadBeaconWeights
  // says, are copies of the base's. Where `adapter` is not null they are its. Weights are decoded
  // to float32. Codes as WeightPacker. FAILED_PRECONDITION: there is no beacon embedding, and no
  // token to copy.
  static absl::StatusOr<std::unique_ptr<BeaconTraining>> Load(
      const std::shared_ptr<const weights::ModelFiles>& files,
      const std::shared_ptr<const weights::BeaconAdapter>& adapter,
      const weights::BeaconConfig& config, at::Device device);

  // Runs sequences of equal length, which share windows and ratios, and returns their loss (spec:
  // section 5 of activation-beacon.md). `tokens` and `labels`: int64 [B, T]; labels are not shifted
  // and -100 where nothing is to be learnt. Only interleaved beacons with full coverage learn from
  // the first window. `ratios`, which go on from sequence to sequence, are moved on.
  // INVALID_ARGUMENT: shapes, a token or a label out of range, no target at all, or settings that
  // contradict each other or want other projections than were loaded.
  absl::StatusOr<BeaconLoss> Loss(const memory::BeaconSettings& settings, const at::Tensor& tokens,
                                  const at::Tensor& labels, memory::BeaconRatioState* ratios) const;

  // The beacons' weights, the embedding first, then layer by layer. The tensors are the model's
  // own: an optimiser changes them in place.
  const std::vector<Parameter>& parameters() const { return parameters_; }

 private:
  // A matrix and, maybe, its bias; of beacons, where they have one of their own, another.
  struct Projection {
    at::Tensor weight;  // [out, in]
    at::Tensor bias;    // [out], undefined: none
    at::Tensor beacon_weight;
    at::Tensor beacon_bias;

    bool has_own() const { return beacon_weight.defined(); }
  };
  struct Layer {
    at::Tensor attention_norm;  // [hidden]
    Projection q, k, v, o;
    at::Tensor mlp_norm;  // [hidden]
    Projection gate, up, down;
  };
  // Keys before their rotation, and values, of the entries of a layer. [B, Hkv, M, D]
  struct LayerMemory {
    at::Tensor keys;
    at::Tensor values;
  };
  struct Pass;

  BeaconTraining(const weights::ModelConfig& config, const weights::BeaconConfig& beacon,
                 RotaryTables rotary, at::Device device)
      : config_(config), beacon_(beacon), rotary_(std::move(rotary)), device_(device) {}

  absl::Status CheckArguments(const memory::BeaconSettings& settings, const at::Tensor& tokens,
                              const at::Tensor& labels) const;
  absl::StatusOr<Pass> Prepare(const memory::BeaconSettings& settings,
                               const memory::BeaconState& before,
                               const memory::BeaconPass& plan) const;
  // The last layer's states, normalised, of the pass' tokens. [B, tokens, hidden]
  at::Tensor Run(const Pass& pass, const at::Tensor& tokens,
                 std::vector<LayerMemory>* memory) const;
  at::Tensor Attend(const Pass& pass, const Layer& layer, const at::Tensor& x,
                    LayerMemory* memory) const;
  // Tokens with the projection, beacons with theirs where they have one. x: [B, R, in]
  at::Tensor Project(const Pass& pass, const at::Tensor& x, const Projection& projection) const;
  at::Tensor Normalise(const at::Tensor& x, const at::Tensor& weight) const;

  const weights::ModelConfig config_;
  const weights::BeaconConfig beacon_;
  const RotaryTables rotary_;
  const at::Device device_;
  at::Tensor embedding_;         // [V, hidden]
  at::Tensor beacon_embedding_;  // [1, hidden]
  std::vector<Layer> layers_;
  at::Tensor norm_;     // [hidden]
  at::Tensor lm_head_;  // [V, hidden]
  std::vector<Parameter> parameters_;

  friend class BeaconTrainingLoader;
};

}  // namespace mneme::model

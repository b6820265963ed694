#include "common/model/beacon_weights.h"

#include <ATen/Functions.h>

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model/torch_status.h"
#include "common/status/status_macros.h"

namespace mneme::model {
namespace {

using weights::BeaconConfig;
using weights::ModelConfig;

// One kind of projection: "q", and how it is named with beacons and without.
struct Kind {
  char letter;
  bool has_bias;
  bool is_own = false;

  std::string Name(int64_t layer, bool own, const char* part) const {
    return absl::StrCat("model.layers.", layer, ".self_attn.", own ? "beacon_" : "",
                        std::string(1, letter), "_proj.", part);
  }
  std::string Name(int64_t layer, const char* part) const { return Name(layer, is_own, part); }
};

// Says whether all layers have the kind's own tensors. INVALID_ARGUMENT: of another shape.
absl::StatusOr<bool> IsComplete(const WeightPacker& packer, const ModelConfig& model,
                                const Kind& kind) {
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    for (const char* part : {"weight", "bias"}) {
      if (part[0] == 'b' && !kind.has_bias) continue;
      const std::string name = kind.Name(layer, /*own=*/true, part);
      if (!packer.Has(name)) return false;
      ASSIGN_OR_RETURN(const weights::Weight own, packer.Find(name));
      ASSIGN_OR_RETURN(const weights::Weight base,
                       packer.Find(kind.Name(layer, /*own=*/false, part)));
      if (own.view.shape != base.view.shape) {
        return absl::InvalidArgumentError(absl::StrCat("a beacon's tensor has another shape than ",
                                                       base.view.Describe(), ": ", name, " ",
                                                       own.view.Describe()));
      }
    }
  }
  return true;
}

absl::Status LoadEmbedding(WeightPacker& packer, const ModelConfig& model,
                           const BeaconConfig& config, const kernels::PackedLinear& embedding,
                           BeaconWeights* beacon) {
  if (packer.Has(kBeaconEmbedding)) {
    ASSIGN_OR_RETURN(const at::Tensor row, packer.Vector(kBeaconEmbedding));
    if (row.numel() != model.hidden_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the beacon embedding should have ", model.hidden_size, " elements: ", row.numel()));
    }
    beacon->embedding = row.view({1, model.hidden_size});
    beacon->is_trained = true;
    return absl::OkStatus();
  }
  const std::optional<int64_t> token = BeaconEmbeddingToken(model, config);
  if (!token.has_value()) return absl::OkStatus();
  return CatchTorch("beacon embedding", [&] {
    beacon->embedding =
        at::empty({1, model.hidden_size}, embedding.data()[0].options().dtype(at::kFloat));
    kernels::EmbeddingOut(at::full({1}, *token, embedding.data()[0].options().dtype(at::kInt)),
                          embedding, beacon->embedding);
  });
}

// The four kinds; is_own where `own` says so.
std::array<Kind, 4> Kinds(const ModelConfig& model, const BeaconKinds& own) {
  return {{{.letter = 'q', .has_bias = model.qkv_bias, .is_own = own.q},
           {.letter = 'k', .has_bias = model.qkv_bias, .is_own = own.k},
           {.letter = 'v', .has_bias = model.qkv_bias, .is_own = own.v},
           {.letter = 'o', .has_bias = model.output_bias, .is_own = own.o}}};
}

}  // namespace

std::optional<int64_t> BeaconEmbeddingToken(const ModelConfig& model, const BeaconConfig& config) {
  std::optional<int64_t> token = model.bos_token_id;
  if (config.embed_init == weights::BeaconEmbedInit::kEos) {
    token = model.eos_token_ids.empty() ? std::nullopt : std::optional(model.eos_token_ids[0]);
  }
  if (!token.has_value() || *token < 0 || *token >= model.vocab_size) return std::nullopt;
  return token;
}

absl::StatusOr<BeaconKinds> FindBeaconKinds(const WeightPacker& packer, const ModelConfig& model,
                                            const BeaconConfig& config) {
  BeaconKinds found = {.q = config.has_q, .k = config.has_k, .v = config.has_v, .o = config.has_o};
  const std::array<Kind, 4> kinds = Kinds(model, found);
  const std::array<bool*, 4> results = {&found.q, &found.k, &found.v, &found.o};
  for (size_t i = 0; i < kinds.size(); ++i) {
    if (!kinds[i].is_own) continue;
    ASSIGN_OR_RETURN(*results[i], IsComplete(packer, model, kinds[i]));
  }
  return found;
}

absl::StatusOr<BeaconWeights> LoadBeaconWeights(WeightPacker& packer, const ModelConfig& model,
                                                const BeaconConfig& config,
                                                const kernels::PackedLinear& embedding) {
  BeaconWeights beacon;
  beacon.layers.resize(model.num_layers);
  RETURN_IF_ERROR(LoadEmbedding(packer, model, config, embedding, &beacon));
  ASSIGN_OR_RETURN(const BeaconKinds own, FindBeaconKinds(packer, model, config));
  const auto [q, k, v, o] = Kinds(model, own);
  beacon.is_trained |= own.q || own.k || own.v || own.o;
  for (int64_t i = 0; i < model.num_layers; ++i) {
    BeaconLayerWeights& layer = beacon.layers[i];
    if (q.is_own || k.is_own || v.is_own) {
      ASSIGN_OR_RETURN(
          layer.qkv, packer.Linear({q.Name(i, "weight"), k.Name(i, "weight"), v.Name(i, "weight")},
                                   model.hidden_size));
      if (model.qkv_bias) {
        ASSIGN_OR_RETURN(layer.qkv_bias,
                         packer.Vectors({q.Name(i, "bias"), k.Name(i, "bias"), v.Name(i, "bias")}));
      }
    }
    if (o.is_own) {
      ASSIGN_OR_RETURN(layer.output,
                       packer.Linear({o.Name(i, "weight")}, model.num_heads * model.head_size));
      if (model.output_bias) {
        ASSIGN_OR_RETURN(layer.output_bias, packer.Vector(o.Name(i, "bias")));
      }
    }
  }
  return beacon;
}

}  // namespace mneme::model

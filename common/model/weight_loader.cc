#include "common/model/weight_loader.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model/weight_packer.h"
#include "common/status/status_macros.h"

namespace mneme::model {
namespace {

using weights::ModelFiles;

absl::StatusOr<LayerWeights> LoadLayer(WeightPacker& packer, const weights::ModelConfig& config,
                                       int64_t index) {
  const auto name = [index](const char* part) {
    return absl::StrCat("model.layers.", index, ".", part);
  };
  const int64_t hidden = config.hidden_size;
  LayerWeights layer;
  ASSIGN_OR_RETURN(layer.attention_norm, packer.Vector(name("input_layernorm.weight")));
  ASSIGN_OR_RETURN(layer.qkv,
                   packer.Linear({name("self_attn.q_proj.weight"), name("self_attn.k_proj.weight"),
                                  name("self_attn.v_proj.weight")},
                                 hidden));
  if (config.qkv_bias) {
    ASSIGN_OR_RETURN(layer.qkv_bias,
                     packer.Vectors({name("self_attn.q_proj.bias"), name("self_attn.k_proj.bias"),
                                     name("self_attn.v_proj.bias")}));
  }
  ASSIGN_OR_RETURN(layer.output, packer.Linear({name("self_attn.o_proj.weight")},
                                               config.num_heads * config.head_size));
  if (config.output_bias) {
    ASSIGN_OR_RETURN(layer.output_bias, packer.Vector(name("self_attn.o_proj.bias")));
  }
  ASSIGN_OR_RETURN(layer.mlp_norm, packer.Vector(name("post_attention_layernorm.weight")));
  ASSIGN_OR_RETURN(
      layer.gate_up,
      packer.Linear({name("mlp.gate_proj.weight"), name("mlp.up_proj.weight")}, hidden));
  ASSIGN_OR_RETURN(layer.down,
                   packer.Linear({name("mlp.down_proj.weight")}, config.intermediate_size));
  if (config.mlp_bias) {
    ASSIGN_OR_RETURN(layer.gate_up_bias,
                     packer.Vectors({name("mlp.gate_proj.bias"), name("mlp.up_proj.bias")}));
    ASSIGN_OR_RETURN(layer.down_bias, packer.Vector(name("mlp.down_proj.bias")));
  }
  return layer;
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(
    const std::shared_ptr<const ModelFiles>& files,
    const std::shared_ptr<const weights::BeaconAdapter>& adapter, at::Device device) {
  const weights::ModelConfig& config = files->config();
  WeightPacker packer(files, adapter == nullptr ? nullptr : adapter->tensors(), device);
  ModelWeights all;
  ASSIGN_OR_RETURN(all.embedding, packer.Linear({"model.embed_tokens.weight"}, config.hidden_size));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(packer, config, i));
    all.layers.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(all.norm, packer.Vector("model.norm.weight"));
  if (config.tie_word_embeddings) {
    all.lm_head = all.embedding;
  } else {
    ASSIGN_OR_RETURN(all.lm_head, packer.Linear({"lm_head.weight"}, config.hidden_size));
  }
  const std::optional<weights::BeaconConfig>& beacon =
      adapter == nullptr ? config.beacon : adapter->config();
  ASSIGN_OR_RETURN(
      all.beacon,
      LoadBeaconWeights(packer, config, beacon.value_or(weights::BeaconConfig()), all.embedding));
  all.num_bytes = packer.num_bytes();
  return all;
}

}  // namespace mneme::model

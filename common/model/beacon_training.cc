#include "common/model/beacon_training.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/model/beacon_weights.h"
#include "common/model/torch_status.h"
#include "common/model/weight_packer.h"
#include "common/status/status_macros.h"

namespace mneme::model {
namespace {

using memory::BeaconPass;
using memory::BeaconRow;
using memory::BeaconRowKind;
using memory::BeaconSettings;
using memory::BeaconState;

constexpr int64_t kIgnored = -100;  // a label
constexpr int64_t kWholeWindow = int64_t{1} << 30;

// Half-split rotation. x: [B, H, T, D]; cos and sin: [T, D/2].
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const std::vector<at::Tensor> half = x.chunk(2, -1);
  return at::cat({half[0] * cos - half[1] * sin, half[1] * cos + half[0] * sin}, -1);
}

// `bias` may be undefined.
at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
}

}  // namespace

// What a pass is, as tensors.
struct BeaconTraining::Pass {
  at::Tensor token_rows;   // int64: rows that are tokens
  at::Tensor beacon_rows;  // int64: rows that are beacons or their replicas
  // int64 [R]: where row i is in "first all tokens, then all beacons".
  at::Tensor order;
  at::Tensor
      origins;  // int64 [R]: the row itself; of a replica, its beacon's. Undefined: no replica
  at::Tensor key_cos, key_sin;      // [M + R, D/2]
  at::Tensor query_cos, query_sin;  // [R, D/2]
  at::Tensor hidden;                // bool [R, M + R]: what a row does not see
  at::Tensor kept;                  // int64: columns that are the memory afterwards. Undefined: all
  int64_t num_before = 0;
  int64_t num_rows = 0;
};

// Fills in a model's tensors.
class BeaconTrainingLoader {
 public:
  BeaconTrainingLoader(WeightPacker packer, BeaconTraining* model)
      : packer_(std::move(packer)), model_(*model) {}

  absl::Status Load() {
    const weights::ModelConfig& config = model_.config_;
    ASSIGN_OR_RETURN(model_.embedding_, packer_.Dense("model.embed_tokens.weight"));
    ASSIGN_OR_RETURN(model_.norm_, packer_.Dense("model.norm.weight"));
    if (config.tie_word_embeddings) {
      model_.lm_head_ = model_.embedding_;
    } else {
      ASSIGN_OR_RETURN(model_.lm_head_, packer_.Dense("lm_head.weight"));
    }
    RETURN_IF_ERROR(LoadBeaconEmbedding());
    ASSIGN_OR_RETURN(const BeaconKinds own, FindBeaconKinds(packer_, config, model_.beacon_));
    model_.layers_.resize(config.num_layers);
    for (int64_t i = 0; i < config.num_layers; ++i) {
      prefix_ = absl::StrCat("model.layers.", i, ".");
      BeaconTraining::Layer& layer = model_.layers_[i];
      ASSIGN_OR_RETURN(layer.attention_norm, packer_.Dense(prefix_ + "input_layernorm.weight"));
      ASSIGN_OR_RETURN(layer.mlp_norm, packer_.Dense(prefix_ + "post_attention_layernorm.weight"));
      const weights::BeaconConfig& beacon = model_.beacon_;
      RETURN_IF_ERROR(LoadAttention("q", config.qkv_bias, beacon.has_q, own.q, &layer.q));
      RETURN_IF_ERROR(LoadAttention("k", config.qkv_bias, beacon.has_k, own.k, &layer.k));
      RETURN_IF_ERROR(LoadAttention("v", config.qkv_bias, beacon.has_v, own.v, &layer.v));
      RETURN_IF_ERROR(LoadAttention("o", config.output_bias, beacon.has_o, own.o, &layer.o));
      RETURN_IF_ERROR(LoadProjection("mlp.gate_proj", config.mlp_bias, &layer.gate));
      RETURN_IF_ERROR(LoadProjection("mlp.up_proj", config.mlp_bias, &layer.up));
      RETURN_IF_ERROR(LoadProjection("mlp.down_proj", config.mlp_bias, &layer.down));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status LoadBeaconEmbedding() {
    if (packer_.Has(kBeaconEmbedding)) {
      ASSIGN_OR_RETURN(model_.beacon_embedding_, packer_.Dense(kBeaconEmbedding));
    } else {
      const std::optional<int64_t> token = BeaconEmbeddingToken(model_.config_, model_.beacon_);
      if (!token.has_value()) {
        return absl::FailedPreconditionError(
            "the model has no beacon embedding and names no end token to copy one from");
      }
      ASSIGN_OR_RETURN(model_.beacon_embedding_, CatchTorch(kBeaconEmbedding, [&] {
                         return model_.embedding_.narrow(0, *token, 1).clone();
                       }));
    }
    if (model_.beacon_embedding_.numel() != model_.config_.hidden_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("the beacon embedding should have ", model_.config_.hidden_size,
                       " elements: ", model_.beacon_embedding_.numel()));
    }
    return Train(kBeaconEmbedding, &model_.beacon_embedding_);
  }

  absl::Status LoadProjection(const std::string& name, bool has_bias,
                              BeaconTraining::Projection* projection) {
    ASSIGN_OR_RETURN(projection->weight, packer_.Dense(absl::StrCat(prefix_, name, ".weight")));
    if (!has_bias) return absl::OkStatus();
    ASSIGN_OR_RETURN(projection->bias, packer_.Dense(absl::StrCat(prefix_, name, ".bias")));
    return absl::OkStatus();
  }

  // `has_own`: beacons have this projection of their own; `is_found`: the files have it.
  absl::Status LoadAttention(const std::string& letter, bool has_bias, bool has_own, bool is_found,
                             BeaconTraining::Projection* projection) {
    RETURN_IF_ERROR(
        LoadProjection(absl::StrCat("self_attn.", letter, "_proj"), has_bias, projection));
    if (!has_own) return absl::OkStatus();
    const std::string name = absl::StrCat(prefix_, "self_attn.beacon_", letter, "_proj.");
    RETURN_IF_ERROR(
        LoadOwn(name + "weight", is_found, projection->weight, &projection->beacon_weight));
    if (!has_bias) return absl::OkStatus();
    return LoadOwn(name + "bias", is_found, projection->bias, &projection->beacon_bias);
  }

  absl::Status LoadOwn(const std::string& name, bool is_found, const at::Tensor& base,
                       at::Tensor* own) {
    if (is_found) {
      ASSIGN_OR_RETURN(*own, packer_.Dense(name));
    } else {
      ASSIGN_OR_RETURN(*own, CatchTorch(name, [&] { return base.clone(); }));
    }
    return Train(name, own);
  }

  absl::Status Train(const std::string& name, at::Tensor* value) {
    RETURN_IF_ERROR(CatchTorch(name, [&] { value->requires_grad_(); }));
    model_.parameters_.push_back({name, *value});
    return absl::OkStatus();
  }

  WeightPacker packer_;
  BeaconTraining& model_;
  std::string prefix_;  // of the layer at hand
};

absl::StatusOr<std::unique_ptr<BeaconTraining>> BeaconTraining::Load(
    const std::shared_ptr<const weights::ModelFiles>& files,
    const std::shared_ptr<const weights::BeaconAdapter>& adapter,
    const weights::BeaconConfig& config, at::Device device) {
  RETURN_IF_ERROR(weights::CheckBeaconConfig(config));
  ASSIGN_OR_RETURN(RotaryTables rotary, RotaryTables::Create(files->config(), device));
  auto model = std::unique_ptr<BeaconTraining>(
      new BeaconTraining(files->config(), config, std::move(rotary), device));
  BeaconTrainingLoader loader(
      WeightPacker(files, adapter == nullptr ? nullptr : adapter->tensors(), device), model.get());
  RETURN_IF_ERROR(loader.Load());
  return model;
}

absl::Status BeaconTraining::CheckArguments(const BeaconSettings& settings,
                                            const at::Tensor& tokens,
                                            const at::Tensor& labels) const {
  RETURN_IF_ERROR(memory::CheckBeaconSettings(settings));
  const weights::BeaconConfig& config = settings.config;
  if (config.has_q != beacon_.has_q || config.has_k != beacon_.has_k ||
      config.has_v != beacon_.has_v || config.has_o != beacon_.has_o) {
    return absl::InvalidArgumentError(
        "the settings want other beacon projections than were loaded: load the model with them");
  }
  if (tokens.dim() != 2 || tokens.numel() == 0 || tokens.scalar_type() != at::kLong ||
      labels.sizes() != tokens.sizes() || labels.scalar_type() != at::kLong) {
    return absl::InvalidArgumentError("tokens and labels must be int64 [B, T], both of one shape");
  }
  if (tokens.min().item<int64_t>() < 0 || tokens.max().item<int64_t>() >= config_.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("a token is not among the ", config_.vocab_size, " of the model"));
  }
  const at::Tensor targets = labels.masked_select(labels.ne(kIgnored));
  if (targets.numel() > 0 &&
      (targets.min().item<int64_t>() < 0 || targets.max().item<int64_t>() >= config_.vocab_size)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a label is neither ", kIgnored, " nor among the ", config_.vocab_size, " tokens"));
  }
  return absl::OkStatus();
}

absl::StatusOr<BeaconLoss> BeaconTraining::Loss(const BeaconSettings& settings,
                                                const at::Tensor& tokens, const at::Tensor& labels,
                                                memory::BeaconRatioState* ratios) const {
  absl::Status checked;
  RETURN_IF_ERROR(
      CatchTorch("arguments", [&] { checked = CheckArguments(settings, tokens, labels); }));
  RETURN_IF_ERROR(checked);
  const int64_t num_sequences = tokens.size(0);
  const int64_t num_tokens = tokens.size(1);
  // Other modes don't learn from the first window, which has no memory behind it.
  const bool learns_from_first =
      settings.config.placement == weights::BeaconPlacement::kInterleave &&
      settings.config.attention == weights::BeaconAttention::kFullCoverage;
  const at::Tensor tokens_here = tokens.to(device_);
  const at::Tensor labels_here = labels.cpu().contiguous();

  BeaconLoss result;
  BeaconState state = FirstBeaconState(settings);
  state.ratios = *ratios;
  std::vector<LayerMemory> memory(layers_.size());
  std::vector<at::Tensor> sums;  // of the losses, a tensor [B] per pass
  at::Tensor counts;             // of the targets, int64 [B]
  while (state.end < num_tokens) {
    ASSIGN_OR_RETURN(const BeaconPass plan,
                     PlanBeaconPass(settings, state, num_tokens, kWholeWindow));
    ASSIGN_OR_RETURN(const Pass pass, Prepare(settings, state, plan));
    std::vector<int64_t> targets;  // [B, tokens of the pass]
    for (int64_t b = 0; b < num_sequences; ++b) {
      const std::vector<int64_t> of_rows = BeaconTargets(
          plan,
          absl::MakeConstSpan(labels_here.const_data_ptr<int64_t>() + b * num_tokens, num_tokens));
      for (size_t row = 0; row < of_rows.size(); ++row) {
        if (plan.rows[row].kind != BeaconRowKind::kToken) continue;
        const bool is_learnt = learns_from_first || state.start > 0;
        targets.push_back(is_learnt ? of_rows[row] : kIgnored);
      }
    }
    RETURN_IF_ERROR(CatchTorch("forward pass", [&] {
      const at::Tensor states =
          Run(pass, tokens_here.narrow(1, state.end, plan.num_tokens), &memory);
      const at::Tensor wanted =
          at::tensor(targets, at::kLong).view({num_sequences, plan.num_tokens}).to(device_);
      const at::Tensor count = wanted.ne(kIgnored).sum(1);
      counts = counts.defined() ? counts + count : count;
      // Logits are large: none where nobody asks for them.
      if (count.sum().item<int64_t>() == 0) return;
      const at::Tensor losses =
          at::cross_entropy_loss(at::linear(states, lm_head_).flatten(0, 1), wanted.flatten(), {},
                                 at::Reduction::None, kIgnored);
      sums.push_back(losses.view({num_sequences, plan.num_tokens}).sum(1));
    }));
    result.ratios.insert(result.ratios.end(), plan.ratios.begin(), plan.ratios.end());
    state = plan.after;
  }
  if (sums.empty()) {
    return absl::InvalidArgumentError(
        "the sequences have no target to learn from: every label is -100, the first of its "
        "sequence, or in a first window that is not learnt from");
  }
  RETURN_IF_ERROR(CatchTorch("loss", [&] {
    const at::Tensor sum = at::stack(sums).sum(0);
    result.num_targets = counts.sum().item<int64_t>();
    result.loss = sum.sum() / static_cast<double>(result.num_targets);
    result.sequence_losses = (sum / counts.clamp_min(1)).detach();
  }));
  *ratios = state.ratios;
  return result;
}

absl::StatusOr<BeaconTraining::Pass> BeaconTraining::Prepare(const BeaconSettings& settings,
                                                             const BeaconState& before,
                                                             const BeaconPass& plan) const {
  Pass pass;
  pass.num_before = plan.num_before;
  pass.num_rows = static_cast<int64_t>(plan.rows.size());
  const int64_t num_columns = pass.num_before + pass.num_rows;
  std::vector<int64_t> token_rows, beacon_rows, order, origins, positions;
  bool has_replicas = false;
  for (int64_t i = 0; i < plan.num_before; ++i) {
    positions.push_back(BeaconEntryPosition(settings, before, i));
  }
  for (int64_t r = 0; r < pass.num_rows; ++r) {
    const BeaconRow& row = plan.rows[r];
    const bool is_token = row.kind == BeaconRowKind::kToken;
    order.push_back(is_token ? static_cast<int64_t>(token_rows.size())
                             : plan.num_tokens + static_cast<int64_t>(beacon_rows.size()));
    (is_token ? token_rows : beacon_rows).push_back(r);
    origins.push_back(row.kind == BeaconRowKind::kReplica ? row.origin : r);
    has_replicas |= row.kind == BeaconRowKind::kReplica;
    positions.push_back(row.position);
  }
  std::vector<int64_t> kept;
  if (plan.rearranges) {
    for (int64_t i = 0; i < plan.first_source; ++i) kept.push_back(i);
    kept.insert(kept.end(), plan.sources.begin(), plan.sources.end());
  }
  const std::vector<int64_t> lengths(num_columns, plan.after.rope_length);
  RETURN_IF_ERROR(CatchTorch("pass", [&] {
    const auto indices = [&](const std::vector<int64_t>& values) {
      return at::tensor(values, at::kLong).to(device_);
    };
    pass.token_rows = indices(token_rows);
    pass.beacon_rows = indices(beacon_rows);
    pass.order = indices(order);
    if (has_replicas) pass.origins = indices(origins);
    if (plan.rearranges) pass.kept = indices(kept);
    const auto options = at::TensorOptions().dtype(at::kFloat).device(device_);
    pass.key_cos = at::empty({num_columns, config_.head_size / 2}, options);
    pass.key_sin = at::empty_like(pass.key_cos);
    // A row sees what the plan says; where that is silent, all columns up to its own.
    at::Tensor seen = at::ones({pass.num_rows, num_columns}, at::kBool).tril(pass.num_before);
    if (!plan.visible.empty()) {
      at::Tensor part = at::tensor(plan.visible, at::kByte);
      seen.narrow(1, plan.first_column, plan.num_columns())
          .copy_(part.view({pass.num_rows, plan.num_columns()}));
    }
    pass.hidden = seen.logical_not().to(device_);
  }));
  RETURN_IF_ERROR(rotary_.Fill(positions, lengths, pass.key_cos, pass.key_sin));
  RETURN_IF_ERROR(CatchTorch("pass", [&] {
    pass.query_cos = pass.key_cos.narrow(0, pass.num_before, pass.num_rows).clone();
    pass.query_sin = pass.key_sin.narrow(0, pass.num_before, pass.num_rows).clone();
  }));
  if (rotary_.scales_queries()) {
    RETURN_IF_ERROR(rotary_.ScaleQueries(absl::MakeConstSpan(positions).subspan(pass.num_before),
                                         pass.query_cos, pass.query_sin));
  }
  return pass;
}

at::Tensor BeaconTraining::Normalise(const at::Tensor& x, const at::Tensor& weight) const {
  return x * at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + config_.rms_norm_eps) * weight;
}

at::Tensor BeaconTraining::Project(const Pass& pass, const at::Tensor& x,
                                   const Projection& projection) const {
  if (!projection.has_own() || pass.beacon_rows.size(0) == 0) {
    return Linear(x, projection.weight, projection.bias);
  }
  return at::cat({Linear(x.index_select(1, pass.token_rows), projection.weight, projection.bias),
                  Linear(x.index_select(1, pass.beacon_rows), projection.beacon_weight,
                         projection.beacon_bias)},
                 1)
      .index_select(1, pass.order);
}

at::Tensor BeaconTraining::Run(const Pass& pass, const at::Tensor& tokens,
                               std::vector<LayerMemory>* memory) const {
  // The beacons' embedding, as often as there are beacons, behind the tokens'; then in order.
  const at::Tensor beacons =
      beacon_embedding_.expand({tokens.size(0), pass.beacon_rows.size(0), config_.hidden_size});
  at::Tensor x =
      at::cat({at::embedding(embedding_, tokens), beacons}, 1).index_select(1, pass.order);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    x = x + Attend(pass, layer, Normalise(x, layer.attention_norm), &(*memory)[i]);
    const at::Tensor y = Normalise(x, layer.mlp_norm);
    x = x + Project(pass, at::silu(Project(pass, y, layer.gate)) * Project(pass, y, layer.up),
                    layer.down);
  }
  return Normalise(x.index_select(1, pass.token_rows), norm_);
}

at::Tensor BeaconTraining::Attend(const Pass& pass, const Layer& layer, const at::Tensor& x,
                                  LayerMemory* memory) const {
  const auto project_heads = [&](const Projection& projection, int64_t num_heads) {
    at::Tensor y = Project(pass, x, projection);
    // A replica is its beacon again.
    if (pass.origins.defined() && projection.has_own()) y = y.index_select(1, pass.origins);
    return y.view({x.size(0), pass.num_rows, num_heads, config_.head_size}).transpose(1, 2);
  };
  const at::Tensor q = project_heads(layer.q, config_.num_heads);
  at::Tensor k = project_heads(layer.k, config_.num_kv_heads);
  at::Tensor v = project_heads(layer.v, config_.num_kv_heads);
  if (pass.num_before > 0) {
    k = at::cat({memory->keys, k}, 2);
    v = at::cat({memory->values, v}, 2);
  }
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  const at::Tensor rotated_k =
      Rotate(k, pass.key_cos, pass.key_sin).repeat_interleave(group, /*dim=*/1);
  at::Tensor scores =
      at::matmul(Rotate(q, pass.query_cos, pass.query_sin), rotated_k.transpose(-1, -2)) /
      std::sqrt(static_cast<double>(config_.head_size));
  scores = scores.masked_fill(pass.hidden, std::numeric_limits<float>::lowest());
  const at::Tensor mixed =
      at::matmul(at::softmax(scores, -1), v.repeat_interleave(group, /*dim=*/1));
  memory->keys = pass.kept.defined() ? k.index_select(2, pass.kept) : k;
  memory->values = pass.kept.defined() ? v.index_select(2, pass.kept) : v;
  return Project(pass, mixed.transpose(1, 2).flatten(2), layer.o);
}

}  // namespace mneme::model

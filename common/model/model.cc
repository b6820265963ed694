#include "common/model/model.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "common/model/beacon_memory.h"
#include "common/model/rotary_tables.h"
#include "common/model/step_plan.h"
#include "common/model/torch_status.h"
#include "common/model/weight_loader.h"
#include "common/status/status_macros.h"
#include "kernels/attention_weights.h"
#include "kernels/linear.h"
#include "kernels/paged_attention.h"
#include "kernels/parallel.h"
#include "kernels/rms_norm.h"
#include "kernels/rotary.h"
#include "kernels/silu_mul.h"

namespace mneme::model {
namespace {

using memory::KvSequence;

memory::KvShape ShapeOf(const weights::ModelConfig& config) {
  memory::KvShape shape{.num_layers = config.num_layers,
                        .num_kv_heads = config.num_kv_heads,
                        .head_size = config.head_size};
  if (config.has_sliding_window()) shape.sliding_windows = config.sliding_windows;
  return shape;
}

// The tensors that the layers of a step work in, kept from step to step. All float32.
struct Workspace {
  at::Tensor hidden;    // [T, hidden]
  at::Tensor normed;    // [T, hidden]
  at::Tensor qkv;       // [T, (Hq + 2 Hkv) * D]
  at::Tensor q_sink;    // [T, Hq, D]
  at::Tensor attended;  // [T, Hq * D]
  at::Tensor gate_up;   // [T, 2 * intermediate]; only where the products have biases
  at::Tensor gated;     // [T, intermediate]
  at::Tensor logits;    // [R, V]
  at::Tensor weights;   // [Hkv * rows * entries]; only where a policy observes attention
};

// Rows that are observed together: the memory for their attention is that of so many.
constexpr int64_t kObservedRows = 16;

// Rows of a step whose attention a sequence's policy wants.
struct ObservedRows {
  const KvSequence* sequence = nullptr;
  int64_t index = 0;  // of the sequence in the step
  int64_t first_row = 0;
  int64_t num_rows = 0;

  int64_t position() const { return sequence->num_tokens() + first_row; }
};

std::vector<ObservedRows> RowsToObserve(absl::Span<const SequenceStep> steps) {
  std::vector<ObservedRows> observed;
  for (size_t i = 0; i < steps.size(); ++i) {
    const KvSequence& sequence = *steps[i].sequence;
    if (sequence.policy().statistics() == memory::AttentionStatistics::kNone) continue;
    const int64_t begin = sequence.num_tokens();
    const memory::PositionRange wanted =
        sequence.state()->Wanted(begin, begin + static_cast<int64_t>(steps[i].tokens.size()));
    if (wanted.begin >= wanted.end) continue;
    observed.push_back({.sequence = &sequence,
                        .index = static_cast<int64_t>(i),
                        .first_row = wanted.begin - begin,
                        .num_rows = wanted.end - wanted.begin});
  }
  return observed;
}

// The first `rows` rows of `tensor`, which is made anew, with room to spare, when it has fewer.
at::Tensor Rows(at::Tensor& tensor, int64_t rows, int64_t width, at::Device device) {
  if (!tensor.defined() || tensor.size(0) < rows) {
    const int64_t before = tensor.defined() ? tensor.size(0) : 0;
    tensor = at::Tensor();  // before the new one is made: both need not fit
    tensor = at::empty({std::max(rows, std::min(2 * before, rows + 64)), width},
                       at::TensorOptions().dtype(at::kFloat).device(device));
  }
  return tensor.narrow(0, 0, rows);
}

}  // namespace

struct Model::Impl {
  Impl(std::shared_ptr<const weights::ModelFiles> model_files, const ModelOptions& model_options,
       ModelWeights model_weights, RotaryTables rotary)
      : files(std::move(model_files)),
        options(model_options),
        config(files->config()),
        shape(ShapeOf(config)),
        weights(std::move(model_weights)),
        planner(config, shape, std::move(rotary), model_options.device) {}

  kernels::Precision precision() const {
    return options.compute == ComputeType::kFloat32 ? kernels::Precision::kExact
                                                    : kernels::Precision::kFast;
  }

  absl::Status Check(absl::Span<const SequenceStep> steps) const;
  at::Tensor Run(absl::Span<const SequenceStep> steps, const StepPlan& plan, const at::Tensor& pool,
                 const memory::KvTables& tables);
  // Shows the attention of a layer to the states of the policies that want it.
  void Observe(absl::Span<const ObservedRows> observed, int64_t layer, const at::Tensor& q,
               const at::Tensor& pool, const kernels::AttentionBatch& batch, double scale);
  absl::Status CheckPass(const SequenceStep& step) const;
  void ProjectBeacons(const StepPlan& plan, int64_t layer, const at::Tensor& normed,
                      const at::Tensor& qkv) const;
  void Output(int64_t layer, const at::Tensor& beacon_rows, const at::Tensor& attended,
              const at::Tensor& hidden) const;
  void Mlp(const LayerWeights& layer, const at::Tensor& hidden);

  const std::shared_ptr<const weights::ModelFiles> files;
  const ModelOptions options;
  const weights::ModelConfig& config;
  const memory::KvShape shape;
  const ModelWeights weights;
  StepPlanner planner;
  Workspace workspace;
};

absl::Status Model::Impl::Check(absl::Span<const SequenceStep> steps) const {
  if (steps.empty()) return absl::InvalidArgumentError("a step needs at least one sequence");
  absl::flat_hash_set<int32_t> slots;
  int64_t num_tokens = 0;
  for (const SequenceStep& step : steps) {
    const KvSequence& sequence = *step.sequence;
    if (!sequence.attached()) {
      return absl::FailedPreconditionError("the sequence is not attached to page tables");
    }
    if (sequence.tables() != steps[0].sequence->tables() ||
        &sequence.pool() != &steps[0].sequence->pool()) {
      return absl::InvalidArgumentError("the sequences of a step must share pool and page tables");
    }
    if (!slots.insert(sequence.slot()).second) {
      return absl::InvalidArgumentError("a sequence is in the step twice");
    }
    const auto count = static_cast<int64_t>(step.tokens.size());
    if (count == 0) return absl::InvalidArgumentError("a sequence brings no tokens");
    if (step.pass != nullptr) RETURN_IF_ERROR(CheckPass(step));
    const int64_t rows =
        step.pass == nullptr ? count : static_cast<int64_t>(step.pass->rows.size());
    const int64_t room = step.pass == nullptr ? count : step.pass->room();
    if (sequence.reserved_tokens() < room) {
      return absl::FailedPreconditionError(
          absl::StrCat("no room reserved for the tokens of a sequence: has ",
                       sequence.reserved_tokens(), ", needs ", room));
    }
    if (step.num_logits < 0 || step.num_logits > count) {
      return absl::InvalidArgumentError(
          absl::StrCat("logits wanted for ", step.num_logits, " of ", count, " tokens"));
    }
    for (const int32_t token : step.tokens) {
      if (token < 0 || token >= config.vocab_size) {
        return absl::InvalidArgumentError(absl::StrCat("token id out of range: ", token,
                                                       ", the vocabulary has ", config.vocab_size));
      }
    }
    num_tokens += rows;
  }
  const memory::KvPool& pool = steps[0].sequence->pool();
  if (pool.head_size() != shape.head_size || pool.device() != options.device) {
    return absl::InvalidArgumentError("the pages don't fit the model");
  }
  if (num_tokens > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("too many tokens in a step: ", num_tokens));
  }
  return absl::OkStatus();
}

absl::Status Model::Impl::CheckPass(const SequenceStep& step) const {
  const memory::BeaconPass& pass = *step.pass;
  if (!weights.beacon.embedding.defined()) {
    return absl::FailedPreconditionError(
        "the model has no beacon embedding and names no token to take one from");
  }
  if (pass.num_tokens != static_cast<int64_t>(step.tokens.size()) ||
      pass.num_before != step.sequence->length(0, 0) ||
      pass.after.end != step.sequence->num_tokens() + pass.num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the beacon pass is not of this sequence and its tokens: behind ",
                     pass.num_before, " entries, ", pass.num_tokens, " tokens"));
  }
  return absl::OkStatus();
}

// Beacons' own q, k and v, in the place of the ordinary ones.
void Model::Impl::ProjectBeacons(const StepPlan& plan, int64_t layer, const at::Tensor& normed,
                                 const at::Tensor& qkv) const {
  const BeaconLayerWeights& own = weights.beacon.layers[layer];
  if (plan.beacon_rows.defined() && own.qkv.has_value()) {
    const at::Tensor x = normed.index_select(0, plan.beacon_rows);
    const at::Tensor y = at::empty({x.size(0), qkv.size(1)}, x.options());
    kernels::LinearOut(x, *own.qkv, precision(), y, own.qkv_bias);
    qkv.index_copy_(0, plan.beacon_rows, y);
  }
  if (plan.replica_rows.defined()) {
    qkv.index_copy_(0, plan.replica_rows, qkv.index_select(0, plan.replica_origins));
  }
}

// hidden += output(attended). Rows `beacon_rows` are beacons; undefined: none.
void Model::Impl::Output(int64_t layer, const at::Tensor& beacon_rows, const at::Tensor& attended,
                         const at::Tensor& hidden) const {
  const LayerWeights& base = weights.layers[layer];
  const BeaconLayerWeights& own = weights.beacon.layers[layer];
  at::Tensor beacons;
  if (beacon_rows.defined() && own.output.has_value()) {
    beacons = hidden.index_select(0, beacon_rows);
    kernels::LinearOut(attended.index_select(0, beacon_rows), *own.output, precision(), beacons,
                       own.output_bias, /*accumulate=*/true);
  }
  kernels::LinearOut(attended, base.output, precision(), hidden, base.output_bias,
                     /*accumulate=*/true);
  if (beacons.defined()) hidden.index_copy_(0, beacon_rows, beacons);
}

// hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))
void Model::Impl::Mlp(const LayerWeights& layer, const at::Tensor& hidden) {
  const int64_t rows = hidden.size(0);
  const at::Tensor normed = Rows(workspace.normed, rows, config.hidden_size, options.device);
  const at::Tensor gated = Rows(workspace.gated, rows, config.intermediate_size, options.device);
  kernels::RmsNormOut(hidden, layer.mlp_norm, config.rms_norm_eps, normed);
  if (layer.gate_up_bias.has_value()) {
    const int64_t width = config.intermediate_size;
    const at::Tensor gate_up = Rows(workspace.gate_up, rows, 2 * width, options.device);
    kernels::LinearOut(normed, layer.gate_up, precision(), gate_up, layer.gate_up_bias);
    kernels::SiluMulOut(gate_up.narrow(1, 0, width), gate_up.narrow(1, width, width), gated);
  } else {
    kernels::LinearSiluMulOut(normed, layer.gate_up, precision(), gated);
  }
  kernels::LinearOut(gated, layer.down, precision(), hidden, layer.down_bias, /*accumulate=*/true);
}

void Model::Impl::Observe(absl::Span<const ObservedRows> observed, int64_t layer,
                          const at::Tensor& q, const at::Tensor& pool,
                          const kernels::AttentionBatch& batch, double scale) {
  const int64_t kv_heads = config.num_kv_heads;
  for (const ObservedRows& rows : observed) {
    int64_t longest = 0;
    for (int64_t head = 0; head < kv_heads; ++head) {
      longest = std::max(longest, rows.sequence->length(layer, head));
    }
    for (int64_t begin = 0; begin < rows.num_rows; begin += kObservedRows) {
      const int64_t count = std::min(kObservedRows, rows.num_rows - begin);
      const int64_t first = rows.first_row + begin;
      const int64_t entries = longest + first + count;
      const at::Tensor weights =
          Rows(workspace.weights, kv_heads * count * entries, 1, options.device)
              .view({kv_heads, count, entries});
      kernels::AttentionWeightsOut(q, pool, batch, scale,
                                   {.sequence = rows.index, .first_row = first, .num_rows = count},
                                   weights);
      rows.sequence->state()->Observe(layer, rows.position() + begin, weights);
    }
  }
}

at::Tensor Model::Impl::Run(absl::Span<const SequenceStep> steps, const StepPlan& plan,
                            const at::Tensor& pool, const memory::KvTables& tables) {
  const std::vector<ObservedRows> observed = RowsToObserve(steps);
  const int64_t num_tokens = plan.num_tokens;
  const int64_t head_size = config.head_size;
  const int64_t q_heads = config.num_heads;
  const int64_t kv_heads = config.num_kv_heads;
  const at::Device device = options.device;
  const double scale = 1 / std::sqrt(static_cast<double>(head_size));

  at::Tensor hidden = Rows(workspace.hidden, num_tokens, config.hidden_size, device);
  const at::Tensor normed = Rows(workspace.normed, num_tokens, config.hidden_size, device);
  const at::Tensor qkv =
      Rows(workspace.qkv, num_tokens, (q_heads + 2 * kv_heads) * head_size, device);
  const at::Tensor heads = qkv.view({num_tokens, q_heads + 2 * kv_heads, head_size});
  const at::Tensor q = heads.narrow(1, 0, q_heads);
  const at::Tensor k = heads.narrow(1, q_heads, kv_heads);
  const at::Tensor qk = heads.narrow(1, 0, q_heads + kv_heads);
  const at::Tensor v = heads.narrow(1, q_heads + kv_heads, kv_heads);
  at::Tensor attended = Rows(workspace.attended, num_tokens, q_heads * head_size, device);
  const at::Tensor attended_heads = attended.view({num_tokens, q_heads, head_size});
  at::Tensor q_sink;
  if (plan.has_sinks) {
    q_sink = Rows(workspace.q_sink, num_tokens, q_heads * head_size, device)
                 .view({num_tokens, q_heads, head_size});
  }

  kernels::EmbeddingOut(plan.tokens, weights.embedding, hidden);
  at::Tensor beacon_rows = plan.beacon_rows;
  if (beacon_rows.defined()) {
    hidden.index_copy_(0, beacon_rows,
                       weights.beacon.embedding.expand({beacon_rows.size(0), config.hidden_size}));
  }
  kernels::AttentionBatch batch{.seq_slot = plan.seq_slot,
                                .query_start = plan.query_start,
                                .hidden = plan.hidden,
                                .hidden_from = plan.hidden_from};
  for (int64_t l = 0; l < config.num_layers; ++l) {
    const LayerWeights& layer = weights.layers[l];
    const LayerMask& mask = plan.masks[plan.mask_of_layer[l]];
    batch.page_table = tables.page_table().select(1, l);
    batch.lengths = tables.lengths().select(1, l);
    batch.window = mask.window;
    batch.sinks = mask.sinks;
    kernels::RmsNormOut(hidden, layer.attention_norm, config.rms_norm_eps, normed);
    kernels::LinearOut(normed, layer.qkv, precision(), qkv, layer.qkv_bias);
    if (beacon_rows.defined()) ProjectBeacons(plan, l, normed, qkv);
    if (mask.sinks.defined()) kernels::RotaryOut(q, mask.sink_cos, mask.sink_sin, q_sink);
    if (plan.q_cos.defined()) {
      kernels::RotaryOut(q, plan.q_cos, plan.q_sin, q);
      kernels::RotaryOut(k, plan.cos, plan.sin, k);
    } else {
      kernels::RotaryOut(qk, plan.cos, plan.sin, qk);
    }
    kernels::KvWrite(k, v, batch, pool);
    Observe(observed, l, q, pool, batch, scale);
    const bool last = l + 1 == config.num_layers;
    // Behind the last layer's keys and values only the wanted rows matter.
    if (last && plan.num_logits == 0) break;
    kernels::PagedAttentionOut(q, pool, batch, scale, attended_heads,
                               mask.sinks.defined() ? std::optional(q_sink) : std::nullopt);
    if (last && plan.num_logits < num_tokens) {
      hidden = hidden.index_select(0, plan.logit_rows);
      attended = attended.index_select(0, plan.logit_rows);
      beacon_rows = at::Tensor();  // logits are of tokens only
    }
    Output(l, beacon_rows, attended, hidden);
    Mlp(layer, hidden);
  }

  const at::Tensor logits = Rows(workspace.logits, plan.num_logits, config.vocab_size, device);
  if (plan.num_logits == 0) return logits;
  const at::Tensor final = normed.narrow(0, 0, plan.num_logits);
  kernels::RmsNormOut(hidden, weights.norm, config.rms_norm_eps, final);
  kernels::LinearOut(final, weights.lm_head, precision(), logits);
  return logits;
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::~Model() = default;

absl::StatusOr<std::unique_ptr<Model>> Model::Load(std::shared_ptr<const weights::ModelFiles> files,
                                                   const ModelOptions& options) {
  const c10::InferenceMode inference;
  const weights::ModelConfig& config = files->config();
  if (config.head_size % 8 != 0 || config.head_size > 256) {
    return absl::UnimplementedError(absl::StrCat(
        "head size must be a multiple of 8 up to 256: ", config.head_size, ", ", files->path()));
  }
  if (options.num_threads < 0) {
    return absl::InvalidArgumentError(absl::StrCat("threads below 0: ", options.num_threads));
  }
  if (options.num_threads > 0) {
    kernels::SetNumThreads(options.num_threads);
    at::set_num_threads(options.num_threads);
  }
  ASSIGN_OR_RETURN(RotaryTables rotary, RotaryTables::Create(config, options.device));
  ASSIGN_OR_RETURN(ModelWeights model_weights,
                   LoadWeights(files, options.beacon_adapter, options.device));
  return absl::WrapUnique(new Model(std::make_unique<Impl>(
      std::move(files), options, std::move(model_weights), std::move(rotary))));
}

absl::StatusOr<at::Tensor> Model::Forward(absl::Span<const SequenceStep> steps) {
  const c10::InferenceMode inference;
  RETURN_IF_ERROR(impl_->Check(steps));
  memory::KvTables& tables = *steps[0].sequence->tables();
  RETURN_IF_ERROR(tables.Flush());
  ASSIGN_OR_RETURN(const StepPlan plan, impl_->planner.Plan(steps));
  for (const SequenceStep& step : steps) {
    if (step.pass != nullptr) {
      RETURN_IF_ERROR(TurnMemory(impl_->planner.rotary(), *step.pass, step.sequence));
    }
  }
  const at::Tensor& pool = steps[0].sequence->pool().tensor();
  ASSIGN_OR_RETURN(at::Tensor logits, CatchTorch("forward pass", [&] {
                     return impl_->Run(steps, plan, pool, tables);
                   }));
  for (const SequenceStep& step : steps) {
    const auto count = static_cast<int64_t>(step.tokens.size());
    if (step.pass == nullptr) {
      step.sequence->Advance(count);
      continue;
    }
    step.sequence->Advance(count, static_cast<int64_t>(step.pass->rows.size()));
    RETURN_IF_ERROR(RearrangeMemory(impl_->planner.rotary(), *step.pass, step.sequence));
  }
  return logits;
}

const weights::ModelConfig& Model::config() const { return impl_->config; }
const weights::ModelFiles& Model::files() const { return *impl_->files; }
const memory::KvShape& Model::kv_shape() const { return impl_->shape; }
const std::optional<weights::BeaconConfig>& Model::beacon_config() const {
  const auto& adapter = impl_->options.beacon_adapter;
  return adapter == nullptr ? impl_->config.beacon : adapter->config();
}
bool Model::has_beacons() const { return impl_->weights.beacon.embedding.defined(); }
memory::BeaconSettings Model::beacon_settings() const {
  memory::BeaconSettings settings =
      memory::MakeBeaconSettings(impl_->config, beacon_config().value_or(weights::BeaconConfig()));
  const auto& adapter = impl_->options.beacon_adapter;
  settings.weights_id = adapter != nullptr                 ? adapter->fingerprint().substr(0, 16)
                        : impl_->weights.beacon.is_trained ? "own"
                                                           : "untrained";
  return settings;
}
const RotaryTables& Model::rotary() const { return impl_->planner.rotary(); }
ComputeType Model::compute() const { return impl_->options.compute; }
at::Device Model::device() const { return impl_->options.device; }
int64_t Model::weight_bytes() const { return impl_->weights.num_bytes; }

memory::KvPoolOptions Model::PoolOptions(int64_t budget_bytes) const {
  return {.head_size = impl_->config.head_size,
          .dtype = compute() == ComputeType::kFloat32 ? at::kFloat : at::kBFloat16,
          .device = device(),
          .budget_bytes = budget_bytes};
}

}  // namespace mneme::model

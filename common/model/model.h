// A decoder of the Llama family (Llama 2/3, Mistral, Qwen2, Falcon3, SmolLM2), for inference over
// paged key/value memory.
//
//   ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Model::Load(files, {.compute = kFloat32}));
//   ASSIGN_OR_RETURN(auto pool, memory::KvPool::Create(model->PoolOptions(budget_bytes)));
//   ASSIGN_OR_RETURN(auto tables, memory::KvTables::Create(model->kv_shape(), model->device()));
//   memory::KvSequence sequence(pool.get(), model->kv_shape(), memory::FullPolicy());
//   RETURN_IF_ERROR(sequence.Attach(*tables));
//   RETURN_IF_ERROR(sequence.Reserve(ids.size()));
//   ASSIGN_OR_RETURN(at::Tensor logits, model->Forward({{&sequence, ids, 1}}));
//   RETURN_IF_ERROR(sequence.Forget());
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/beacon_pass.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_shape.h"
#include "common/weights/beacon_adapter.h"
#include "common/weights/model_config.h"
#include "common/weights/model_files.h"

namespace mneme::model {

class RotaryTables;

enum class ComputeType {
  kFloat32,   // exactly dequantised weights, float32 sums, float32 pages: the reference path
  kBFloat16,  // the fast path: inputs of quantised products in 8 bits, bfloat16 pages
};

struct ModelOptions {
  ComputeType compute = ComputeType::kFloat32;
  at::Device device = at::kCPU;
  // Threads of the kernels, set for the whole process; 0 leaves them as they are.
  int num_threads = 0;
  // Beacon weights that take the place of the model's own, or null.
  std::shared_ptr<const weights::BeaconAdapter> beacon_adapter;
};

// One sequence's share of a step.
struct SequenceStep {
  memory::KvSequence* sequence = nullptr;  // attached, with room for the tokens reserved
  absl::Span<const int32_t> tokens;        // at least one, each in [0, V)
  int64_t num_logits = 1;                  // logits are wanted for this many last tokens, from 0 on
  // Where the sequence has beacons: the pass that takes just these tokens (memory::PlanBeaconPass),
  // pass->room() entries reserved, and from pass->first_rewritten on. The memory is rearranged as
  // it says.
  const memory::BeaconPass* pass = nullptr;
};

// Not thread-safe: one thread owns the model. Results for a sequence don't depend, to the last bit,
// on the other sequences of a step, on how its tokens were cut into steps, nor on thread counts.
class Model {
 public:
  // Loads the weights. Quantised ones are repacked; floats stay mapped, so `files` is kept alive.
  // INVALID_ARGUMENT: a tensor that is missing or of a wrong shape, by name. UNIMPLEMENTED: a
  // weight type or device that there are no kernels for. RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<std::unique_ptr<Model>> Load(
      std::shared_ptr<const weights::ModelFiles> files, const ModelOptions& options);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Runs one step of every sequence and advances them. Returns float32 [R, V]: the wanted rows in
  // the order of `steps`; a view of a workspace, valid until the next call. INVALID_ARGUMENT: token
  // out of range, no tokens, a sequence twice. FAILED_PRECONDITION: a sequence not attached, or
  // without room. On any error no sequence has advanced.
  absl::StatusOr<at::Tensor> Forward(absl::Span<const SequenceStep> steps);

  const weights::ModelConfig& config() const;
  const weights::ModelFiles& files() const;
  const memory::KvShape& kv_shape() const;
  // The settings that the beacon weights came with, nothing where there are none: then beacons are
  // untrained, copies of an end token.
  const std::optional<weights::BeaconConfig>& beacon_config() const;
  // Says whether sequences may have beacons: there are weights, or an end token to copy.
  bool has_beacons() const;
  // How the model's beacons are used unless a caller says otherwise.
  memory::BeaconSettings beacon_settings() const;
  const RotaryTables& rotary() const;
  ComputeType compute() const;
  at::Device device() const;
  // Options of a pool whose pages fit this model.
  memory::KvPoolOptions PoolOptions(int64_t budget_bytes) const;
  // Bytes of the weights in memory, mapped floats included.
  int64_t weight_bytes() const;

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace mneme::model

// The real model behind the engine's interface, opened as the configuration says.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/model/model.h"
#include "mneme/executor/v1/config.pb.h"
#include "mneme/executor/v1/executor.pb.h"
#include "services/executor/step_model.h"

namespace mneme::executor {

class LoadedModel final : public StepModel {
 public:
  // Loads config.model_path. INVALID_ARGUMENT: compute or device unknown, context_length over the
  // model's, or a broken file. FAILED_PRECONDITION: device cuda where there is none. Other codes as
  // weights::ModelFiles::Open and model::Model::Load.
  static absl::StatusOr<std::unique_ptr<LoadedModel>> Load(const v1::ExecutorConfig& config);

  const ModelLimits& limits() const override { return limits_; }
  const memory::KvShape& kv_shape() const override { return model_->kv_shape(); }
  memory::KvPoolOptions PoolOptions(int64_t budget_bytes) const override {
    return model_->PoolOptions(budget_bytes);
  }
  absl::StatusOr<at::Tensor> Forward(absl::Span<const model::SequenceStep> steps) override {
    return model_->Forward(steps);
  }

  // Bytes of key/value memory for one token under policy full.
  int64_t kv_bytes_per_token() const;

  // What GetModel answers, the key/value budget aside.
  v1::GetModelResponse Describe() const;

 private:
  LoadedModel(std::unique_ptr<model::Model> model, const v1::ExecutorConfig& config);

  std::unique_ptr<model::Model> model_;
  std::string name_;
  ModelLimits limits_;
};

// Returns config.kv_budget_bytes, or where it is 0 a quarter of the machine's available memory, but
// no more than 4 GiB, nor than max_running sequences over the whole context could use, and no less
// than one such sequence needs.
int64_t KvBudget(const v1::ExecutorConfig& config, const LoadedModel& model);

}  // namespace mneme::executor

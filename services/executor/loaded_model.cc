#include "services/executor/loaded_model.h"

#include <ATen/Context.h>
#include <openssl/sha.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/log/log.h"
#include "common/memory/beacon_ratio.h"
#include "common/memory/namm_model.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/beacon_adapter.h"
#include "common/weights/model_files.h"
#include "kernels/paged_attention.h"

namespace mneme::executor {
namespace {

constexpr int64_t kMaxDefaultBudget = int64_t{4} << 30;

absl::StatusOr<model::ComputeType> ComputeOf(const std::string& compute) {
  if (compute == "float32") return model::ComputeType::kFloat32;
  // The fast path wins on every processor: its products read a quarter of the bytes.
  if (compute == "bfloat16" || compute == "auto" || compute.empty()) {
    return model::ComputeType::kBFloat16;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("compute must be float32, bfloat16 or auto: ", compute));
}

absl::StatusOr<std::unique_ptr<model::Model>> LoadOn(
    const std::string& device, std::shared_ptr<const weights::ModelFiles> files,
    model::ModelOptions options) {
  if (device != "cpu" && device != "cuda" && device != "auto" && !device.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("device must be cpu, cuda or auto: ", device));
  }
  const bool has_cuda = at::hasCUDA();
  if (device == "cuda" && !has_cuda) {
    return absl::FailedPreconditionError(
        "device cuda was asked for, but this machine or build has no CUDA; use cpu or auto");
  }
  if (has_cuda && device != "cpu") {
    options.device = at::Device(at::kCUDA, 0);
    absl::StatusOr<std::unique_ptr<model::Model>> model = model::Model::Load(files, options);
    if (model.ok() || device == "cuda") return model;
    log::Warning("the model does not run on CUDA, falling back to the CPU",
                 {{"error", std::string(model.status().message())}});
  }
  options.device = at::kCPU;
  return model::Model::Load(std::move(files), options);
}

// Returns the memory that new allocations may use, 0 if that cannot be found out.
int64_t AvailableMemory() {
  int64_t available = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    int64_t value = 0;
    meminfo >> value;
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = value * 1024;
  }
  // A container may have less than its machine.
  int64_t limit = 0;
  int64_t used = 0;
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used) {
    available = std::min(available, std::max<int64_t>(limit - used, 0));
  }
  return available;
}

std::string Sha256(const std::string& text) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return absl::BytesToHexString(digest);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadedModel::Load(const v1::ExecutorConfig& config) {
  ASSIGN_OR_RETURN(const model::ComputeType compute, ComputeOf(config.compute()));
  ASSIGN_OR_RETURN(std::shared_ptr<const weights::ModelFiles> files,
                   weights::ModelFiles::Open(config.model_path()));
  if (config.context_length() < 0 || config.context_length() > files->config().context_length) {
    return absl::InvalidArgumentError(
        absl::StrCat("context_length must be from 0 (the model's own) to the model's ",
                     files->config().context_length, ": ", config.context_length()));
  }
  model::ModelOptions options{.compute = compute, .num_threads = config.threads()};
  if (!config.beacon_adapter().empty()) {
    ASSIGN_OR_RETURN(options.beacon_adapter, weights::BeaconAdapter::Open(config.beacon_adapter()));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<model::Model> model,
                   LoadOn(config.device(), std::move(files), options));
  auto loaded = absl::WrapUnique(new LoadedModel(std::move(model), config));
  for (const v1::ExecutorConfig::NammArtifact& artifact : config.namm_artifacts()) {
    ASSIGN_OR_RETURN(memory::NammModel namm, memory::NammModel::Load(artifact.path()));
    if (artifact.name().empty() ||
        !loaded->limits_.policies.namm
             .emplace(artifact.name(), std::make_shared<const memory::NammModel>(std::move(namm)))
             .second) {
      return absl::InvalidArgumentError(
          absl::StrCat("namm_artifacts must have names of their own: \"", artifact.name(), "\""));
    }
  }
  return loaded;
}

LoadedModel::LoadedModel(std::unique_ptr<model::Model> model, const v1::ExecutorConfig& config)
    : model_(std::move(model)), name_(config.model()) {
  const weights::ModelConfig& shape = model_->config();
  limits_.vocab_size = shape.vocab_size;
  limits_.context_length =
      config.context_length() > 0 ? config.context_length() : shape.context_length;
  limits_.policies.shape = model_->kv_shape();
  limits_.policies.entry_bytes = kv_bytes_per_token() / kv_shape().num_heads();
  if (model_->has_beacons()) {
    limits_.policies.beacons =
        std::make_shared<const memory::BeaconSettings>(model_->beacon_settings());
  }
  for (const int64_t id : shape.eos_token_ids) {
    if (id >= 0 && id < shape.vocab_size) limits_.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
}

int64_t LoadedModel::kv_bytes_per_token() const {
  const int64_t element = model_->compute() == model::ComputeType::kFloat32 ? 4 : 2;
  return kv_shape().num_heads() * kv_shape().head_size * 2 * element;
}

v1::GetModelResponse LoadedModel::Describe() const {
  const weights::ModelConfig& shape = model_->config();
  const bool is_float32 = model_->compute() == model::ComputeType::kFloat32;
  v1::GetModelResponse response;
  response.set_model(name_);
  response.set_architecture(std::string(weights::ArchitectureName(shape.architecture)));
  response.set_compute_type(is_float32 ? "float32" : "bfloat16");
  response.set_fingerprint(
      Sha256(absl::StrCat(model_->files().fingerprint(), "\n", response.compute_type())));
  response.set_context_length(static_cast<int32_t>(limits_.context_length));
  response.set_vocab_size(static_cast<int32_t>(shape.vocab_size));
  response.set_num_layers(static_cast<int32_t>(shape.num_layers));
  response.set_num_kv_heads(static_cast<int32_t>(shape.num_kv_heads));
  response.set_head_size(static_cast<int32_t>(shape.head_size));
  response.set_weight_type(model_->files().file_type());
  response.set_device(model_->device().str());
  response.set_page_tokens(static_cast<int32_t>(kernels::kPageEntries));
  response.set_num_parameters(model_->files().num_parameters());
  response.mutable_eos_token_ids()->Assign(limits_.eos_token_ids.begin(),
                                           limits_.eos_token_ids.end());
  response.add_memory_policies("full");
  response.add_memory_policies("window");
  if (!model_->config().has_sliding_window()) {
    for (const char* const policy : {"h2o", "snapkv", "l2norm"})
      response.add_memory_policies(policy);
    if (!limits_.policies.namm.empty()) response.add_memory_policies("namm");
  }
  if (model_->has_beacons()) response.add_memory_policies("beacon");
  return response;
}

int64_t KvBudget(const v1::ExecutorConfig& config, const LoadedModel& model) {
  if (config.kv_budget_bytes() > 0) return config.kv_budget_bytes();
  // A page more per head than the context fills.
  const int64_t one =
      model.kv_bytes_per_token() * (model.limits().context_length + kernels::kPageEntries);
  const int64_t running = config.max_running() > 0 ? config.max_running() : 64;
  const int64_t wanted = std::min({AvailableMemory() / 4, kMaxDefaultBudget, one * running});
  return std::max(wanted, one);
}

}  // namespace mneme::executor

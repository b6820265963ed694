#include "services/executor/request_check.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/memory/memory_policy.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/executor/sampling_params.h"

namespace mneme::executor {
namespace {

using Ids = google::protobuf::RepeatedField<int32_t>;

absl::StatusOr<std::vector<int32_t>> CheckIds(absl::string_view field, const Ids& ids,
                                              int64_t vocab_size) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return status::InvalidField(
        field, absl::StrCat("token id outside the vocabulary of ", vocab_size, " tokens: index ", i,
                            ", id ", ids[i]));
  }
  return std::vector<int32_t>(ids.begin(), ids.end());
}

}  // namespace

absl::Status CheckModelName(absl::string_view requested, absl::string_view served) {
  if (requested.empty() || requested == served) return absl::OkStatus();
  return status::WithPayload(
      absl::NotFoundError(absl::StrCat("this executor does not serve the model asked for: \"",
                                       requested, "\", it serves \"", served, "\"")),
      status::kFieldPayload, "model");
}

absl::StatusOr<WorkSpec> CheckGenerate(const v1::GenerateRequest& request,
                                       const ModelLimits& limits) {
  WorkSpec spec;
  spec.request_id = request.request_id();
  spec.tenant = request.tenant();
  spec.session_id = request.session_id();
  if (request.prompt_ids().empty()) {
    return status::InvalidField("prompt_ids", "needs at least one token");
  }
  ASSIGN_OR_RETURN(spec.prompt, CheckIds("prompt_ids", request.prompt_ids(), limits.vocab_size));
  ASSIGN_OR_RETURN(spec.generated,
                   CheckIds("generated_ids", request.generated_ids(), limits.vocab_size));
  ASSIGN_OR_RETURN(SamplingParams sampling,
                   CheckSampling(request.sampling(), limits.vocab_size, limits.eos_token_ids));
  if (!spec.generated.empty() && sampling.n > 1) {
    return status::InvalidField(
        "generated_ids",
        "goes with one answer only; ask for the answer alone, with n = 1 and its own seed");
  }
  spec.sampling = std::make_shared<const SamplingParams>(std::move(sampling));
  ASSIGN_OR_RETURN(memory::PolicyChoice choice,
                   memory::CreatePolicyChoice(request.memory_policy(), limits.policies));
  spec.policy = std::move(choice.policy);
  spec.is_elastic = choice.is_elastic;
  spec.guard = choice.guard;
  if (request.memory_policy().has_beacon() && spec.sampling->n > 1) {
    return status::InvalidField("sampling.n",
                                absl::StrCat("must be 1 with memory policy beacon, whose memory "
                                             "answers don't share: ",
                                             spec.sampling->n));
  }
  if (!snapshot::v1::Encoding_IsValid(request.snapshot_encoding())) {
    return status::InvalidField(
        "snapshot_encoding",
        absl::StrCat("is none that this executor knows: ", request.snapshot_encoding()));
  }
  if (!spec.session_id.empty()) {
    spec.lease_token = request.lease_token();
    spec.parent_version = request.parent_version();
    spec.snapshot_version = request.snapshot_version();
    spec.snapshot_encoding = request.snapshot_encoding();
  }
  return spec;
}

absl::StatusOr<WorkSpec> CheckScore(const v1::ScoreRequest& request, const ModelLimits& limits) {
  WorkSpec spec;
  spec.request_id = request.request_id();
  spec.tenant = request.tenant();
  if (request.context_ids().empty()) {
    return status::InvalidField("context_ids", "needs at least one token");
  }
  ASSIGN_OR_RETURN(spec.prompt, CheckIds("context_ids", request.context_ids(), limits.vocab_size));
  const int count = request.continuations_size();
  if (count == 0 || count > kMaxContinuations) {
    return status::InvalidField(
        "continuations", absl::StrCat("needs 1 to ", kMaxContinuations, " entries: ", count));
  }
  for (int i = 0; i < count; ++i) {
    const Ids& ids = request.continuations(i).token_ids();
    const std::string field = absl::StrCat("continuations[", i, "].token_ids");
    if (ids.empty()) return status::InvalidField(field, "needs at least one token");
    ASSIGN_OR_RETURN(std::vector<int32_t> checked, CheckIds(field, ids, limits.vocab_size));
    spec.continuations.push_back(std::move(checked));
  }
  // Contexts are not long-lived: elastic and guard have nothing to say of them.
  ASSIGN_OR_RETURN(memory::PolicyChoice choice,
                   memory::CreatePolicyChoice(request.memory_policy(), limits.policies));
  spec.policy = std::move(choice.policy);
  return spec;
}

}  // namespace mneme::executor

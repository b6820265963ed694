#include "services/executor/quality_guard.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/log/log.h"
#include "common/memory/kv_sequence.h"
#include "common/status/status_macros.h"

namespace mneme::executor {
namespace {

// The logarithm of the sum of the exponentials.
double LogSumExp(const float* row, int64_t size) {
  const double largest = *std::max_element(row, row + size);
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += std::exp(row[i] - largest);
  return largest + std::log(sum);
}

}  // namespace

double MeanDivergence(const at::Tensor& exact, const at::Tensor& other) {
  const int64_t rows = exact.size(0);
  const int64_t size = exact.size(1);
  const float* p = exact.const_data_ptr<float>();
  const float* q = other.const_data_ptr<float>();
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row, p += size, q += size) {
    const double p_norm = LogSumExp(p, size);
    const double q_norm = LogSumExp(q, size);
    for (int64_t i = 0; i < size; ++i) {
      const double log_p = p[i] - p_norm;
      sum += std::exp(log_p) * (log_p - (q[i] - q_norm));
    }
  }
  return sum / static_cast<double>(rows);
}

bool QualityGuard::IsDue(const Sequence& sequence) {
  const auto& guard = sequence.request->spec.guard;
  if (!guard.has_value() || sequence.kind != SequenceKind::kAnswer) return false;
  const int64_t num_tokens = sequence.num_computed();
  return num_tokens >= kShadowTokens && num_tokens % guard->probe_every == 0;
}

absl::StatusOr<double> QualityGuard::Measure(absl::Span<const int32_t> tokens,
                                             std::shared_ptr<const memory::MemoryPolicy> policy) {
  const memory::KvShape& shape = model_->kv_shape();
  memory::KvSequence full(pool_, shape, memory::FullPolicy());
  memory::KvSequence shadow(pool_, shape, std::move(policy));
  const int64_t num_tokens = static_cast<int64_t>(tokens.size());
  const int64_t most = std::max<int64_t>(step_tokens_ / 2, 1);
  std::vector<at::Tensor> rows;  // of each step: the full cache's, then the policy's
  while (full.num_tokens() < num_tokens) {
    const int64_t begin = full.num_tokens();
    const int64_t count = shadow.policy().LayOut(shadow, num_tokens - begin, most).num_tokens;
    for (memory::KvSequence* const sequence : {&full, &shadow}) {
      RETURN_IF_ERROR(sequence->Attach(*tables_));
      absl::Status reserved = sequence->Reserve(count);
      while (!reserved.ok() && cache_->EvictOldest()) reserved = sequence->Reserve(count);
      RETURN_IF_ERROR(reserved);
    }
    const int64_t num_logits =
        std::clamp<int64_t>(begin + count - (num_tokens - kScoredTokens), 0, count);
    const absl::Span<const int32_t> step = tokens.subspan(begin, count);
    ASSIGN_OR_RETURN(
        const at::Tensor logits,
        model_->Forward({{.sequence = &full, .tokens = step, .num_logits = num_logits},
                         {.sequence = &shadow, .tokens = step, .num_logits = num_logits}}));
    RETURN_IF_ERROR(full.Forget());
    RETURN_IF_ERROR(shadow.Forget());
    // Valid until the next step only.
    if (num_logits > 0) rows.push_back(logits.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true));
  }
  double sum = 0;
  for (const at::Tensor& both : rows) {
    const int64_t half = both.size(0) / 2;
    sum += MeanDivergence(both.narrow(0, 0, half), both.narrow(0, half, half)) *
           static_cast<double>(half);
  }
  return sum / static_cast<double>(kScoredTokens);
}

absl::Status QualityGuard::Probe(Sequence* sequence) {
  const WorkSpec& spec = sequence->request->spec;
  if (!sequence->memory.has_value() || !spec.guard.has_value()) return absl::OkStatus();
  memory::KvSequence& memory = *sequence->memory;
  const int64_t num_tokens = memory.num_tokens();
  auto shadow = memory.policy().Shadow(kShadowTokens - kScoredTokens, num_tokens);
  if (shadow == nullptr) return absl::OkStatus();  // nothing has been dropped
  const absl::StatusOr<double> divergence = Measure(
      absl::MakeConstSpan(sequence->tokens).subspan(num_tokens - kShadowTokens, kShadowTokens),
      std::move(shadow));
  inference::v1::GuardReport& report = sequence->guard;
  if (absl::IsResourceExhausted(divergence.status())) {
    report.set_skipped(report.skipped() + 1);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(divergence.status());
  metrics_->guard_probes.Increment();
  report.set_probes(report.probes() + 1);
  report.set_worst_kl(std::max(report.worst_kl(), *divergence));
  // Written so that NaN backs off.
  if (*divergence <= spec.guard->max_kl) return absl::OkStatus();
  auto looser = memory.policy().Looser();
  if (looser == nullptr || looser->EstimatePeakPages(memory.shape(), sequence->request->token_limit,
                                                     step_tokens_) > pool_->num_pages()) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(memory.Loosen(std::move(looser)));
  metrics_->guard_back_offs.Increment();
  report.set_back_offs(report.back_offs() + 1);
  log::Info(
      "a memory's budget was doubled by its guard",
      {{"request", spec.request_id}, {"policy", memory.policy().Describe()}, {"kl", *divergence}});
  return absl::OkStatus();
}

}  // namespace mneme::executor

#include "services/gateway/admission.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::gateway {
namespace {

absl::Status OverQuota(const std::string& quota, const std::string& message, absl::Duration retry) {
  return status::WithRetryAfter(
      status::WithPayload(absl::ResourceExhaustedError(message), status::kQuotaPayload, quota),
      retry);
}

}  // namespace

Admission::Ticket::~Ticket() { admission_.Leave(tenant_); }

void Admission::Ticket::Spend(int64_t tokens) {
  if (tokens_per_minute_ <= 0 || tokens <= 0) return;
  sync::MutexLock lock(admission_.mutex_);
  Tenant& tenant = admission_.tenants_[tenant_];
  admission_.Refill(tenant, tokens_per_minute_);
  tenant.tokens -= static_cast<double>(tokens);
}

void Admission::Refill(Tenant& tenant, int64_t tokens_per_minute) {
  const absl::Time now = clock_.Now();
  const auto full = static_cast<double>(tokens_per_minute);
  if (!tenant.rated) {
    tenant.rated = true;
    tenant.tokens = full;
  } else {
    const double minutes = absl::ToDoubleMinutes(std::max(now - tenant.refilled, absl::Duration()));
    tenant.tokens = std::min(full, tenant.tokens + minutes * full);
  }
  tenant.refilled = now;
}

absl::StatusOr<std::unique_ptr<Admission::Ticket>> Admission::Enter(const std::string& tenant_name,
                                                                    const v1::Limits& limits) {
  sync::MutexLock lock(mutex_);
  if (draining_) {
    return status::WithRetryAfter(absl::UnavailableError("the server is shutting down"),
                                  absl::Seconds(1));
  }
  if (inside_ >= max_requests_) {
    return status::WithRetryAfter(
        absl::ResourceExhaustedError(
            absl::StrCat("the server is at its limit of open requests: ", max_requests_)),
        absl::Seconds(1));
  }
  Tenant& tenant = tenants_[tenant_name];
  if (limits.max_concurrent() > 0 && tenant.inside >= limits.max_concurrent()) {
    return OverQuota(
        "max_concurrent",
        absl::StrCat("the limit of concurrent requests is reached: ", limits.max_concurrent()),
        absl::Seconds(1));
  }
  if (limits.tokens_per_minute() > 0) {
    Refill(tenant, limits.tokens_per_minute());
    if (tenant.tokens <= 0) {
      const double minutes = (1 - tenant.tokens) / static_cast<double>(limits.tokens_per_minute());
      return OverQuota(
          "tokens_per_minute",
          absl::StrCat("the limit of tokens per minute is reached: ", limits.tokens_per_minute()),
          absl::Minutes(minutes));
    }
  }
  ++tenant.inside;
  ++inside_;
  return std::unique_ptr<Ticket>(new Ticket(*this, tenant_name, limits.tokens_per_minute()));
}

void Admission::Leave(const std::string& name) {
  sync::MutexLock lock(mutex_);
  --inside_;
  const auto found = tenants_.find(name);
  if (--found->second.inside == 0 && !found->second.rated) tenants_.erase(found);
  left_.NotifyAll();
}

void Admission::Drain() {
  sync::MutexLock lock(mutex_);
  draining_ = true;
}

bool Admission::WaitUntilEmpty(absl::Duration timeout) {
  const auto until = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(timeout);
  sync::MutexLock lock(mutex_);
  while (inside_ > 0) {
    if (!left_.WaitUntil(mutex_, until)) return inside_ == 0;
  }
  return true;
}

int Admission::num_inside() const {
  sync::MutexLock lock(mutex_);
  return inside_;
}

}  // namespace mneme::gateway

#include "services/memory/sweep_lock.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "services/memory/family.h"

namespace mneme::memory {
namespace {

using redis::Reply;

std::string TimeText() { return absl::StrCat(absl::ToInt64Milliseconds(SweepLock::kTime)); }

}  // namespace

SweepLock::SweepLock(FamilyDirectory& directory, std::string key)
    : directory_(directory), key_(std::move(key)), owner_(NewTurnId()) {}

absl::StatusOr<bool> SweepLock::Take(absl::Time deadline) {
  const absl::StatusOr<std::vector<Reply>> taken =
      directory_.RunPipeline({{"SET", key_, owner_, "NX", "PX", TimeText()}}, deadline);
  kept_ = absl::Now();
  if (absl::IsResourceExhausted(taken.status())) return true;
  RETURN_IF_ERROR(taken.status());
  return !(*taken)[0].is_nil();
}

bool SweepLock::IsOurs(absl::Time deadline) {
  const auto held = directory_.RunPipeline({{"GET", key_}}, deadline);
  return held.ok() && (*held)[0].text() == owner_;
}

void SweepLock::Keep(absl::Time deadline) {
  if (absl::Now() - kept_ < kTime / 4) return;
  kept_ = absl::Now();
  if (!IsOurs(deadline)) return;
  directory_.RunPipeline({{"PEXPIRE", key_, TimeText()}}, deadline).status().IgnoreError();
}

void SweepLock::Release(absl::Time deadline) {
  if (!IsOurs(deadline)) return;
  directory_.RunPipeline({{"DEL", key_}}, deadline).status().IgnoreError();
}

}  // namespace mneme::memory

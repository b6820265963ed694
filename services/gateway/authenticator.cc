#include "services/gateway/authenticator.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {
namespace {

constexpr char kDefaultTenant[] = "default";
constexpr absl::string_view kScheme = "bearer ";

}  // namespace

absl::StatusOr<Authenticator::Identity> Authenticator::Identify(
    absl::string_view authorization) const {
  Identity identity{kDefaultTenant, /*admin=*/keys_ == nullptr, default_limits_};
  if (keys_ == nullptr) return identity;
  absl::string_view key;
  if (absl::StartsWithIgnoreCase(authorization, kScheme)) {
    key = absl::StripAsciiWhitespace(authorization.substr(kScheme.size()));
  }
  ASSIGN_OR_RETURN(const auth::Identity known, keys_->Authenticate(key));
  identity.tenant = known.tenant;
  identity.admin = known.admin;
  if (known.limits.max_concurrent) {
    identity.limits.set_max_concurrent(*known.limits.max_concurrent);
  }
  if (known.limits.tokens_per_minute) {
    identity.limits.set_tokens_per_minute(*known.limits.tokens_per_minute);
  }
  return identity;
}

}  // namespace mneme::gateway

// Who a request comes from. One object serves both fronts.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/auth/api_keys.h"
#include "mneme/gateway/v1/config.pb.h"

namespace mneme::gateway {

// Thread-safe.
class Authenticator {
 public:
  struct Identity {
    std::string tenant;
    bool admin = false;
    v1::Limits limits;
  };

  // `keys` may be null: then everybody is the tenant "default" and an administrator. It must
  // outlive this object.
  Authenticator(auth::KeyStore* keys, const v1::Limits& default_limits)
      : keys_(keys), default_limits_(default_limits) {}

  // `authorization` is the header's value, "Bearer KEY". UNAUTHENTICATED.
  absl::StatusOr<Identity> Identify(absl::string_view authorization) const;

 private:
  auth::KeyStore* const keys_;
  const v1::Limits default_limits_;
};

}  // namespace mneme::gateway

// The tenants' data keys: made at a tenant's first session, kept in Redis wrapped by the master
// key, gone for ever when the tenant is forgotten.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/crypto/aead.h"
#include "common/redis/client.h"
#include "common/sync/mutex.h"

namespace mneme::memory {

struct TenantKey {
  crypto::Key key;
  std::string id;  // tells keys of one tenant apart, and nothing of the key
};

// The key of Redis that lists the tenants: a hash, tenant -> wrapped data key. An empty value: the
// key is destroyed, and what it sealed is being removed.
inline constexpr char kTenantsKey[] = "mneme:2:tenants";

// Thread-safe. Keys are remembered; the service's other replicas learn of a new or destroyed one
// when a family's script says that its key is another.
class TenantKeys {
 public:
  // `client` must outlive this. `master_key_file` is named in errors.
  TenantKeys(redis::Client& client, const crypto::Key& master, std::string master_key_file);

  // Returns the tenant's key. NOT_FOUND: it has none. FAILED_PRECONDITION: the master key is not
  // the one that wrapped it. `again` asks Redis whatever is remembered.
  absl::StatusOr<std::shared_ptr<const TenantKey>> Find(const std::string& tenant, bool again,
                                                        absl::Time deadline);
  // The same, asking Redis; a tenant without a key gets one. As many replicas of Redis have the key
  // as a turn waits for. UNAVAILABLE: they are too few, or the tenant is just being forgotten.
  absl::StatusOr<std::shared_ptr<const TenantKey>> FindOrMake(const std::string& tenant,
                                                              absl::Time deadline);

  // Destroys the tenant's key. From then on it is one of List's leftovers, until RemoveTenant.
  absl::Status Destroy(const std::string& tenant, absl::Time deadline);
  absl::Status RemoveTenant(const std::string& tenant, absl::Time deadline);

  struct Tenants {
    std::vector<std::string> known;
    std::vector<std::string> leftovers;  // their key is destroyed
  };
  absl::StatusOr<Tenants> List(absl::Time deadline);

  // Returns whether the master key opens what it should; OK where there is no tenant yet.
  absl::Status Check(absl::Time deadline);

 private:
  absl::StatusOr<std::shared_ptr<const TenantKey>> Unwrap(const std::string& tenant,
                                                          const std::string& wrapped) const;
  void Forget(const std::string& tenant);
  std::shared_ptr<const TenantKey> Remember(const std::string& tenant,
                                            std::shared_ptr<const TenantKey> key,
                                            bool is_replicated);
  bool IsReplicated(const std::string& tenant, const TenantKey& key);

  struct Known {
    std::shared_ptr<const TenantKey> key;
    bool is_replicated = false;  // as far as this process has made sure
  };

  redis::Client& client_;
  const crypto::Key master_;
  const std::string master_key_file_;
  const redis::Script make_;
  sync::Mutex mutex_;
  std::map<std::string, Known> known_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::memory

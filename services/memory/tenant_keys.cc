#include "services/memory/tenant_keys.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/crypto/sha256.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {
namespace {

using redis::Reply;
using KeyPtr = std::shared_ptr<const TenantKey>;

constexpr size_t kMaxRemembered = 10'000;
constexpr size_t kIdBytes = 8;

// KEYS: the tenants. ARGV: tenant, the wrapped key that it gets if it is not known. Answers the one
// that it has; '' if that is destroyed.
constexpr char kMake[] = R"lua(
local key = redis.call('HGET', KEYS[1], ARGV[1]) or ARGV[2]
-- Known or not: the caller waits until replicas have it, and for that it must be a write.
redis.call('HSET', KEYS[1], ARGV[1], key)
return key
)lua";

std::string PlaceOf(const std::string& tenant) { return absl::StrCat(kTenantsKey, "/", tenant); }

KeyPtr WithId(const crypto::Key& key) {
  std::string id = absl::BytesToHexString(crypto::Mac(key, "id").substr(0, kIdBytes));
  return std::make_shared<const TenantKey>(TenantKey{key, std::move(id)});
}

}  // namespace

TenantKeys::TenantKeys(redis::Client& client, const crypto::Key& master,
                       std::string master_key_file)
    : client_(client),
      master_(master),
      master_key_file_(std::move(master_key_file)),
      make_(kMake, redis::Ack::kReplicas) {}

absl::StatusOr<KeyPtr> TenantKeys::Unwrap(const std::string& tenant,
                                          const std::string& wrapped) const {
  absl::StatusOr<std::string> bytes = crypto::Open(master_, wrapped, PlaceOf(tenant));
  if (!bytes.ok() || bytes->size() != crypto::kKeyBytes) {
    return status::WithPayload(
        absl::FailedPreconditionError(absl::StrCat(
            "the master key is not the one that this Redis was filled with; put the right one into "
            "master_key_file: ",
            master_key_file_)),
        status::kReasonPayload, kWrongMasterKey);
  }
  return WithId(crypto::Key::FromBytes(*bytes));
}

void TenantKeys::Forget(const std::string& tenant) {
  sync::MutexLock lock(mutex_);
  known_.erase(tenant);
}

KeyPtr TenantKeys::Remember(const std::string& tenant, KeyPtr key, bool is_replicated) {
  sync::MutexLock lock(mutex_);
  if (known_.size() >= kMaxRemembered) known_.clear();
  Known& known = known_[tenant];
  if (known.key == nullptr || known.key->id != key->id) known = {.key = key};
  known.is_replicated |= is_replicated;
  return key;
}

bool TenantKeys::IsReplicated(const std::string& tenant, const TenantKey& key) {
  sync::MutexLock lock(mutex_);
  const auto known = known_.find(tenant);
  return known != known_.end() && known->second.is_replicated && known->second.key->id == key.id;
}

absl::StatusOr<KeyPtr> TenantKeys::Find(const std::string& tenant, bool again,
                                        absl::Time deadline) {
  if (!again) {
    sync::MutexLock lock(mutex_);
    if (const auto known = known_.find(tenant); known != known_.end()) {
      return known->second.key;
    }
  }
  ASSIGN_OR_RETURN(const Reply wrapped, client_.Run({"HGET", kTenantsKey, tenant}, deadline));
  if (wrapped.text().empty()) {
    Forget(tenant);
    return absl::NotFoundError(absl::StrCat("the tenant has no key: ", tenant));
  }
  ASSIGN_OR_RETURN(KeyPtr key, Unwrap(tenant, wrapped.text()));
  return Remember(tenant, std::move(key), /*is_replicated=*/false);
}

absl::StatusOr<KeyPtr> TenantKeys::FindOrMake(const std::string& tenant, absl::Time deadline) {
  absl::StatusOr<KeyPtr> found = Find(tenant, /*again=*/true, deadline);
  if (!found.ok() && !absl::IsNotFound(found.status())) return found;
  if (found.ok() && IsReplicated(tenant, **found)) return found;
  const crypto::Key key = crypto::Key::Random();
  const std::string wrapped = crypto::Seal(master_, std::string(key.view()), PlaceOf(tenant));
  // What is sealed with it may be on another server, and outlive one that fails. That holds for a
  // key that somebody else has just made too.
  ASSIGN_OR_RETURN(const Reply kept,
                   client_.Eval(make_, {kTenantsKey}, {tenant, wrapped}, deadline));
  if (kept.text().empty()) {
    return absl::UnavailableError(
        absl::StrCat("the tenant is just being forgotten, try again: ", tenant));
  }
  ASSIGN_OR_RETURN(KeyPtr made, Unwrap(tenant, kept.text()));
  return Remember(tenant, std::move(made), /*is_replicated=*/true);
}

absl::Status TenantKeys::Destroy(const std::string& tenant, absl::Time deadline) {
  RETURN_IF_ERROR(
      client_.Run({"HSET", kTenantsKey, tenant, ""}, deadline, redis::Ack::kReplicas).status());
  Forget(tenant);
  return absl::OkStatus();
}

absl::Status TenantKeys::RemoveTenant(const std::string& tenant, absl::Time deadline) {
  // Nobody replaces an empty value, so it still is the one of Destroy.
  return client_.Run({"HDEL", kTenantsKey, tenant}, deadline).status();
}

absl::StatusOr<TenantKeys::Tenants> TenantKeys::List(absl::Time deadline) {
  ASSIGN_OR_RETURN(const Reply reply, client_.Run({"HGETALL", kTenantsKey}, deadline));
  Tenants tenants;
  const std::vector<Reply>& pairs = reply.elements();
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    auto& list = pairs[i + 1].text().empty() ? tenants.leftovers : tenants.known;
    list.push_back(pairs[i].text());
  }
  return tenants;
}

absl::Status TenantKeys::Check(absl::Time deadline) {
  ASSIGN_OR_RETURN(const Reply one,
                   client_.Run({"HRANDFIELD", kTenantsKey, "1", "WITHVALUES"}, deadline));
  if (one.elements().size() != 2 || one.elements()[1].text().empty()) return absl::OkStatus();
  return Unwrap(one.elements()[0].text(), one.elements()[1].text()).status();
}

}  // namespace mneme::memory

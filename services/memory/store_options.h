// What an operator lets sessions and tenants do, for both stores.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/time/time.h"
#include "mneme/memory/v1/config.pb.h"
#include "mneme/memory/v1/memory.pb.h"

namespace mneme::memory {

struct StoreOptions {
  int64_t default_ttl_seconds = 0;                // of a session after its last use; 0: for ever
  absl::Duration orphan_age = absl::Minutes(10);  // how long staged data waits for its turn
  // Payload bytes of all chunks in Redis; beyond it a sweep moves those of the least used families
  // to disk, or drops their snapshots where there is no disk tier; never text. 0: no bound.
  int64_t redis_budget_bytes = 0;
  // Of a tenant's session, of which model and memory_policy are given: whether what it has stored
  // may be rounded while it is idle, before a sweep without a disk tier drops it. Null: of none.
  std::function<bool(const std::string& tenant, const v1::Session& session)> is_elastic;
  v1::Quota default_quota;
  std::map<std::string, v1::Quota> quotas;  // by tenant

  const v1::Quota& QuotaOf(const std::string& tenant) const {
    const auto found = quotas.find(tenant);
    return found == quotas.end() ? default_quota : found->second;
  }
  // Of sessions that name none; 0: for ever.
  int64_t TtlSecondsOf(const std::string& tenant) const {
    const int64_t own = QuotaOf(tenant).ttl_seconds();
    return own != 0 ? own : default_ttl_seconds;
  }
};

}  // namespace mneme::memory

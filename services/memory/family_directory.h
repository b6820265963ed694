// Which family each session belongs to, and the way to Redis for all that the Redis store does.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/metrics/metrics.h"
#include "common/redis/client.h"
#include "common/status/status_macros.h"
#include "common/sync/mutex.h"
#include "services/memory/family.h"
#include "services/memory/redis_scripts.h"
#include "services/memory/tenant_keys.h"

namespace mneme::memory {

// The first word of a script's answer.
absl::string_view Word(const redis::Reply& reply);
// Returns element `i` of a script's answer as a number.
absl::StatusOr<int64_t> Number(const redis::Reply& reply, size_t i);

// One entry of a tenant's index as it was read.
struct IndexEntry {
  std::string session_id;
  std::string family;  // "": it has none
  int64_t order = 0;   // of the last use; unique
};

// Thread-safe. Where a session lies is remembered, and looked up again when its family does not
// know it.
class FamilyDirectory {
 public:
  // All must outlive this.
  FamilyDirectory(redis::Client& client, TenantKeys& keys, metrics::Counter& redis_errors)
      : client_(client), keys_(keys), redis_errors_(redis_errors) {}

  const RedisScripts& scripts() const { return scripts_; }
  redis::Client& client() { return client_; }
  TenantKeys& keys() { return keys_; }

  absl::StatusOr<redis::Reply> Eval(const redis::Script& script,
                                    const std::vector<std::string>& keys,
                                    const std::vector<redis::Argument>& arguments,
                                    absl::Time deadline);
  // Fails with the first error among the replies.
  absl::StatusOr<std::vector<redis::Reply>> RunPipeline(const std::vector<redis::Command>& commands,
                                                        absl::Time deadline);

  // What a script answered, and the family it ran on; none: the session is in no family, and the
  // answer has no word.
  struct Ran {
    std::optional<Family> family;
    redis::Reply reply;

    bool found() const { return family.has_value(); }
    absl::string_view word() const { return Word(reply); }
  };
  using Arguments = std::vector<std::string>;
  // Runs a script on a session wherever its family is. `arguments` makes those after the first
  // three. A session that its family does not know is none.
  template <typename MakeArguments>
  absl::StatusOr<Ran> Run(const redis::Script& script, const std::string& tenant,
                          const std::string& session_id, int64_t default_ttl_seconds,
                          const MakeArguments& arguments, absl::Time deadline) {
    for (const bool again : {false, true}) {
      ASSIGN_OR_RETURN(const std::optional<Family> family,
                       Find(tenant, session_id, again, deadline));
      if (!family.has_value()) return Ran();
      ASSIGN_OR_RETURN(redis::Reply reply, RunIn(*family, script, session_id, default_ttl_seconds,
                                                 arguments(*family), deadline));
      if (Word(reply) != "missing" && Word(reply) != "rekeyed") {
        return Ran{.family = family, .reply = std::move(reply)};
      }
    }
    return Ran();
  }

  // Runs a script on a session of a family that is known.
  absl::StatusOr<redis::Reply> RunIn(const Family& family, const redis::Script& script,
                                     const std::string& session_id, int64_t default_ttl_seconds,
                                     const Arguments& arguments, absl::Time deadline);
  // Runs a script on a family as a whole, whatever its key.
  absl::StatusOr<redis::Reply> RunOnFamily(const Family& family, const redis::Script& script,
                                           const Arguments& arguments, absl::Time deadline);

  // Returns the session's family, none if it has none. `again`: whatever is remembered.
  absl::StatusOr<std::optional<Family>> Find(const std::string& tenant,
                                             const std::string& session_id, bool again,
                                             absl::Time deadline);
  absl::StatusOr<Family> FamilyOf(const std::string& tenant, const std::string& name,
                                  absl::Time deadline);

  // Enters a session that is about to be made and returns the family to make it in: the one it has,
  // else `candidate`, else a new one. A tenant without a key gets one. RESOURCE_EXHAUSTED: the
  // tenant has `max_sessions` (0: no limit).
  absl::StatusOr<Family> Claim(const std::string& tenant, const std::string& session_id,
                               const std::optional<Family>& candidate, int64_t max_sessions,
                               absl::Time deadline);
  // Moves a session to the front of the listing, and puts down how many bytes its family has
  // (none: as they were). Returns false if the session id meanwhile belongs to another family.
  absl::StatusOr<bool> Touch(const std::string& tenant, const std::string& session_id,
                             const std::string& family, const std::string& kv_bytes,
                             absl::Time deadline);
  // Removes sessions from the listing that have not been used since they were read, and not for
  // `min_age`. Best effort.
  void Unlink(const std::string& tenant, const std::vector<IndexEntry>& entries,
              absl::Duration min_age, absl::Time deadline);

  // The keys of Redis that scripts on a tenant take.
  static std::vector<std::string> TenantKeysOf(absl::string_view tenant);
  static std::string IndexKey(absl::string_view tenant);
  static std::string FamiliesKey(absl::string_view tenant);
  static std::string UsageKey(absl::string_view tenant);

 private:
  void Remember(const std::string& tenant, const std::string& session_id,
                const std::string& family);

  redis::Client& client_;
  TenantKeys& keys_;
  metrics::Counter& redis_errors_;
  const RedisScripts scripts_;
  sync::Mutex mutex_;
  std::map<std::pair<std::string, std::string>, std::string> families_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::memory

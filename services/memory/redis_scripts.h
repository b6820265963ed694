// The Lua scripts of RedisSessionStore. Each is one atomic step on the keys of one session, or on
// one tenant's index: those two live in different hash slots of a cluster, so no script has both.
//
// Keys of a session, in the order in which scripts take them (see SessionKeys):
//   head      hash: version, model, created_ms, used_ms, messages, tokens, title, policy (bytes of
//             MemoryPolicy), ttl_s (0: the default), create_request, lease_token, lease_holder,
//             lease_request, lease_until_ms
//   turns     list: turn of version i at i-1, as "version:committed_ms:lease_token:" + bytes of
//   Turn requests  hash: request_id -> version fence     string: the last lease token; outlives the
//   session by a day
// Key of a tenant:
//   sessions  sorted set: session id by last use, in microseconds, each score used once
//
// Time is Redis' own, so that the clocks of the service's replicas need not agree. A lease token is
// the time in microseconds, or one more than the last where that is not larger: it goes on rising
// after the session was deleted, and also if the fence was lost with unsynced writes.
#pragma once

#include "common/redis/client.h"

namespace mneme::memory {

// ARGV of each stands beside its source. Answers are arrays; the first element is a word.
struct RedisScripts {
  redis::Script create;   // made | same: session · exists
  redis::Script get;      // found: session, turns · missing
  redis::Script remove;   // removed · missing
  redis::Script acquire;  // granted: session, token, turns · committed: session, turn · busy:
                          // holder, remaining_ms · stale: version · missing
  redis::Script renew;    // renewed · lost · missing
  redis::Script release;  // released
  redis::Script commit;   // committed | same: version · lost · stale: version · missing

  redis::Script touch_index;  // no answer
  redis::Script drop_from_index;

  RedisScripts();
};

}  // namespace mneme::memory

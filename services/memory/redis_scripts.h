// The Lua scripts of RedisSessionStore. Each is one atomic step on the keys of one family, or on
// those of one tenant: these two live in different hash slots of a cluster, so no script has both.
// Keys that a script makes up begin with those it was given, up to the closing brace.
//
// Keys of a family (family.h, docs/snapshots.md), in the order in which scripts take them:
//   f  hash, the registry. A field that names a key of the family stands for that key:
//        s:<session>  1                       c:<name>  bytes of the payload; if it is on disk, a
//        p:<id>       1, a staged snapshot              space and its place there (disk_tier.h)
//      and: key (id of the data key), n (number of s: fields), fence (the last lease token), epoch
//      (raised by every step that adds or removes a use of a text or chunk), swept (epoch of the
//      last sweep), kv (bytes of all c: fields), disk (of those that are on disk)
//   b  hash, by turn id: t<id> the turn's text, m<id> its manifest (both sealed), h<id> its record:
//      "committed_ms lease_token mark messages tokens snapshot_version snapshot_tokens
//      snapshot_bytes request_id"; messages and tokens are the session's after the turn,
//      snapshot_version is the last version up to it that has a snapshot
//   s:<session>  hash, the head: version, model, created_ms, used_ms, messages, tokens, title
//      (sealed), policy (bytes of MemoryPolicy), ttl_s (0: the default), pinned, create_request,
//      parent, parent_version, kv_bytes, executor, snapshot_version, lease_token, lease_holder,
//      lease_request, lease_until_ms
//   v:<session>  list: the turn id of version i at i-1
//   r:<session>  hash: request_id -> version
//   p:<id>  hash, expires: token (of the lease), manifest (sealed), chunks (of each 32 digits name,
//      8 digits hexadecimal size), tokens, bytes
//   c:<name>  string, a sealed chunk; expires until a turn lists it
// Keys of a tenant:
//   sessions  sorted set: session id by last use, in microseconds, each score used once
//   families  hash: session id -> family
//   usage     hash: family -> its kv, and total
//
// Time is Redis' own, so that the clocks of the service's replicas need not agree. A lease token is
// the time in microseconds, or one more than the family's last where that is not larger.
#pragma once

#include "common/redis/client.h"

namespace mneme::memory {

// ARGV of each stands beside its source. Answers are arrays; the first element is a word. Every
// script on a family may answer `rekeyed`: it was sealed with another data key of the tenant.
struct RedisScripts {
  // On a session of a family.
  redis::Script create;   // made | same: session · exists
  redis::Script get;      // found: session, ids, texts · missing
  redis::Script remove;   // removed: '1' if the family went with it · missing
  redis::Script acquire;  // granted: session, token, ids, texts, executor, snapshot_version ·
                          // committed: session, version, id, record, text · busy: holder,
                          // remaining_ms · stale: version · missing
  redis::Script renew;    // renewed · lost · missing
  redis::Script release;  // released
  redis::Script commit;   // committed: version, why its snapshot was left out ('', gone, lease,
                         // chunks), kv · same: version, the same why, '' · lost · stale: version ·
                         // missing · taken
  redis::Script may_stage;  // yes: a letter for each chunk · lost · missing
  redis::Script stage;      // staged · lost · missing · unknown: position
  redis::Script find;       // found: version, id, manifest · none · range · missing
  redis::Script fork;       // made | same: session · exists · range · missing
  redis::Script rewind;     // rewound: session · busy: holder, remaining_ms · range · missing
  redis::Script update;     // updated: session · missing
  redis::Script take_in;    // made: session, kv · exists · unknown: position
  redis::Script replace;  // replaced: session, older snapshots dropped, kv · lost · stale: version
                          // · gone: what (snapshot, gone, lease, chunks) · missing
  redis::Script describe;  // found: session, ids, records, leased, executor · missing

  // On a family.
  redis::Script mark;   // dropped · clean: kv · marked: epoch, registry, fields of b, ids · gone
  redis::Script sweep;  // swept: kv · moved
  redis::Script shrink;  // shrunk: bytes that were freed in Redis, on disk · busy: it is in use, or
                         // pinned
  redis::Script demote;   // demoted: bytes · busy · moved
  redis::Script promote;  // promoted: bytes · moved
  redis::Script lose;     // lost · moved
  redis::Script discard;  // discarded
  redis::Script unused;   // unused: places
  redis::Script drop;     // dropped: number of sessions

  // On a tenant; `touch` answers ok · other.
  redis::Script claim;  // family · full
  redis::Script touch;
  redis::Script unlink;       // no answer
  redis::Script use;          // no answer
  redis::Script drop_unused;  // no answer

  RedisScripts();
};

}  // namespace mneme::memory

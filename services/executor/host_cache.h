// Copies of snapshot chunks in host memory: a session whose pages were given back comes back
// without the store. Chunks are found by tenant and digest, never by another tenant; equal ones are
// one.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "common/sync/mutex.h"

namespace mneme::executor {

using Payload = std::shared_ptr<const std::string>;

// Thread-safe.
class HostCache {
 public:
  // Holds at most `max_bytes` of payloads; 0: none.
  explicit HostCache(int64_t max_bytes) : max_bytes_(max_bytes) {}

  // Keeps a payload as the one used last, for the session too if another has put it already.
  void Put(absl::string_view tenant, absl::string_view session_id, absl::string_view digest,
           Payload payload);
  // Keeps a payload whose digest is not known yet; Get finds it when Name has told the digest. The
  // number stands for it; none of another payload is the same.
  uint64_t PutUnnamed(absl::string_view tenant, absl::string_view session_id, Payload payload);
  // Does nothing if the payload has had to go meanwhile.
  void Name(uint64_t unnamed, absl::string_view digest);
  void DropUnnamed(uint64_t unnamed);
  // Null: it is not there.
  Payload Get(absl::string_view tenant, absl::string_view digest);

  // Drops what the tenant has put, or only the session, with whom go the payloads that no other
  // session has put.
  void Forget(absl::string_view tenant, absl::string_view session_id);

  bool is_enabled() const { return max_bytes_ > 0; }
  int64_t num_bytes() const;

 private:
  using Key = std::pair<std::string, std::string>;  // tenant, digest
  struct Entry {
    Key key;  // without a digest while it is unnamed
    Payload payload;
    std::vector<std::string> sessions;
    uint64_t unnamed = 0;  // 0: it has its name
  };
  using Position = std::list<Entry>::iterator;

  // Of a payload that is there: it is used now, and by this session too.
  void Use(Position entry, const std::string& session) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Shrink() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(Position entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t max_bytes_;
  mutable sync::Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);                      // used longest ago first
  absl::flat_hash_map<Key, Position> positions_ ABSL_GUARDED_BY(mutex_);  // of the named
  absl::flat_hash_map<uint64_t, Position> unnamed_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_unnamed_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme::executor

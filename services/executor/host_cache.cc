#include "services/executor/host_cache.h"

#include <algorithm>
#include <iterator>

namespace mneme::executor {

void HostCache::Put(absl::string_view tenant, absl::string_view session_id,
                    absl::string_view digest, Payload payload) {
  const int64_t bytes = static_cast<int64_t>(payload->size());
  if (bytes > max_bytes_ || tenant.empty()) return;
  Key key(tenant, digest);
  const std::string session(session_id);
  sync::MutexLock lock(mutex_);
  const auto found = positions_.find(key);
  if (found != positions_.end()) {
    Entry& entry = *found->second;
    if (std::find(entry.sessions.begin(), entry.sessions.end(), session) == entry.sessions.end()) {
      entry.sessions.push_back(session);
    }
    entries_.splice(entries_.end(), entries_, found->second);
    return;
  }
  entries_.push_back({key, std::move(payload), {session}});
  positions_.emplace(std::move(key), std::prev(entries_.end()));
  num_bytes_ += bytes;
  while (num_bytes_ > max_bytes_) Remove(entries_.begin());
}

Payload HostCache::Get(absl::string_view tenant, absl::string_view digest) {
  const Key key(tenant, digest);
  sync::MutexLock lock(mutex_);
  const auto found = positions_.find(key);
  if (found == positions_.end()) return nullptr;
  entries_.splice(entries_.end(), entries_, found->second);
  return found->second->payload;
}

void HostCache::Forget(absl::string_view tenant, absl::string_view session_id) {
  const std::string session(session_id);
  sync::MutexLock lock(mutex_);
  for (Position entry = entries_.begin(); entry != entries_.end();) {
    const Position next = std::next(entry);
    if (entry->key.first == tenant) {
      if (!session.empty()) std::erase(entry->sessions, session);
      if (session.empty() || entry->sessions.empty()) Remove(entry);
    }
    entry = next;
  }
}

int64_t HostCache::num_bytes() const {
  sync::MutexLock lock(mutex_);
  return num_bytes_;
}

void HostCache::Remove(Position entry) {
  num_bytes_ -= static_cast<int64_t>(entry->payload->size());
  positions_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace mneme::executor

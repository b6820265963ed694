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
  if (found != positions_.end()) return Use(found->second, session);
  entries_.push_back({.key = key, .payload = std::move(payload), .sessions = {session}});
  positions_.emplace(std::move(key), std::prev(entries_.end()));
  num_bytes_ += bytes;
  Shrink();
}

uint64_t HostCache::PutUnnamed(absl::string_view tenant, absl::string_view session_id,
                               Payload payload) {
  const int64_t bytes = static_cast<int64_t>(payload->size());
  sync::MutexLock lock(mutex_);
  const uint64_t unnamed = ++last_unnamed_;
  if (bytes > max_bytes_ || tenant.empty()) return unnamed;
  entries_.push_back({.key = Key(tenant, ""),
                      .payload = std::move(payload),
                      .sessions = {std::string(session_id)},
                      .unnamed = unnamed});
  unnamed_.emplace(unnamed, std::prev(entries_.end()));
  num_bytes_ += bytes;
  Shrink();
  return unnamed;
}

void HostCache::Name(uint64_t unnamed, absl::string_view digest) {
  sync::MutexLock lock(mutex_);
  const auto found = unnamed_.find(unnamed);
  if (found == unnamed_.end()) return;
  const Position entry = found->second;
  Key key(entry->key.first, digest);
  if (const auto same = positions_.find(key); same != positions_.end()) {
    Use(same->second, entry->sessions.front());
    return Remove(entry);
  }
  unnamed_.erase(found);
  entry->unnamed = 0;
  entry->key = key;
  positions_.emplace(std::move(key), entry);
}

void HostCache::DropUnnamed(uint64_t unnamed) {
  sync::MutexLock lock(mutex_);
  if (const auto found = unnamed_.find(unnamed); found != unnamed_.end()) Remove(found->second);
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

void HostCache::Use(Position entry, const std::string& session) {
  std::vector<std::string>& sessions = entry->sessions;
  if (std::find(sessions.begin(), sessions.end(), session) == sessions.end()) {
    sessions.push_back(session);
  }
  entries_.splice(entries_.end(), entries_, entry);
}

void HostCache::Shrink() {
  while (num_bytes_ > max_bytes_) Remove(entries_.begin());
}

void HostCache::Remove(Position entry) {
  num_bytes_ -= static_cast<int64_t>(entry->payload->size());
  if (entry->unnamed != 0) {
    unnamed_.erase(entry->unnamed);
  } else {
    positions_.erase(entry->key);
  }
  entries_.erase(entry);
}

}  // namespace mneme::executor

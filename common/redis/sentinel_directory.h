// The master that Redis Sentinels name.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/redis/directory.h"
#include "common/redis/options.h"
#include "common/sync/mutex.h"

namespace mneme::redis {

// Asks one Sentinel after the other. That the server named is a master is checked on every
// connection to it (Role::kMaster).
class SentinelDirectory final : public Directory {
 public:
  explicit SentinelDirectory(Options options);

  absl::Status Refresh(const std::string& hint, absl::Time limit) override;
  NodePtr OwnerOf(int slot) override;
  std::vector<NodePtr> Masters() override;
  bool is_partitioned() const override { return false; }
  NodePtr NodeAt(const std::string& address) override;
  void SetOwner(int, NodePtr) override {}

 private:
  absl::Status Ask(absl::Time limit);
  void Install(const std::string& address);

  const Options options_;
  std::vector<NodePtr> sentinels_;
  RefreshGate gate_;
  sync::Mutex mutex_;
  NodePtr master_ ABSL_GUARDED_BY(mutex_);
  size_t turn_ ABSL_GUARDED_BY(mutex_) = 0;  // who is asked first
};

}  // namespace mneme::redis

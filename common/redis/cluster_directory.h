// The slot map of a Redis Cluster.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/redis/directory.h"
#include "common/redis/options.h"
#include "common/redis/reply.h"
#include "common/sync/mutex.h"

namespace mneme::redis {

// One entry of CLUSTER SLOTS.
struct SlotRange {
  int first = 0;
  int last = 0;                        // inclusive
  std::vector<std::string> addresses;  // the master first, then its replicas
};

// Reads an answer to CLUSTER SLOTS. `asked` is the address it came from, whose host is used where a
// node does not know its own. UNAVAILABLE: the answer is something else.
absl::StatusOr<std::vector<SlotRange>> ParseSlots(const Reply& reply, const std::string& asked);

// Asks the nodes it knows, and those of the options when none of them answers.
class ClusterDirectory final : public Directory {
 public:
  explicit ClusterDirectory(Options options);

  absl::Status Refresh(const std::string& hint, absl::Time limit) override;
  NodePtr OwnerOf(int slot) override;
  std::vector<NodePtr> Masters() override;
  bool is_partitioned() const override { return true; }
  NodePtr NodeAt(const std::string& address) override;
  void SetOwner(int slot, NodePtr node) override;

 private:
  absl::Status Ask(const std::string& hint, absl::Time limit);
  // Whom to ask, the most promising first.
  std::vector<NodePtr> Candidates(const std::string& hint);
  void Install(const std::vector<SlotRange>& ranges);
  NodePtr NodeAtLocked(const std::string& address) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  RefreshGate gate_;
  sync::Mutex mutex_;
  std::map<std::string, NodePtr> nodes_ ABSL_GUARDED_BY(mutex_);  // by address, replicas too
  std::vector<NodePtr> owners_ ABSL_GUARDED_BY(mutex_);           // [kNumSlots]
  std::vector<NodePtr> masters_ ABSL_GUARDED_BY(mutex_);          // by address
  size_t turn_ ABSL_GUARDED_BY(mutex_) = 0;                       // who is asked next
};

}  // namespace mneme::redis

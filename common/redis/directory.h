// Knows which server is the master of which hash slot, by asking servers.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/redis/node.h"
#include "common/redis/options.h"
#include "common/sync/mutex.h"

namespace mneme::redis {

// A master may still be in use when it is no longer one.
using NodePtr = std::shared_ptr<Node>;

// Thread-safe. Implemented by ClusterDirectory and SentinelDirectory.
class Directory {
 public:
  virtual ~Directory() = default;

  // Asks again, at most once in 50 ms: a call that comes sooner, or while another is under way,
  // gets that one's result. `hint` is a server that should know, "" where there is none.
  // UNAVAILABLE: nobody could be asked. FAILED_PRECONDITION: the settings are wrong.
  virtual absl::Status Refresh(const std::string& hint, absl::Time limit) = 0;

  // Returns the master of `slot`, or of any for -1; null where none is known.
  virtual NodePtr OwnerOf(int slot) = 0;
  // Returns every master once, in a fixed order.
  virtual std::vector<NodePtr> Masters() = 0;

  // Returns whether each master has but a part of the keys.
  virtual bool is_partitioned() const = 0;
  // is_partitioned() only: a server that another one named, and what MOVED says.
  virtual NodePtr NodeAt(const std::string& address) = 0;
  virtual void SetOwner(int slot, NodePtr node) = 0;
};

// Lets one thread at a time do a thing, and not too often.
class RefreshGate {
 public:
  // Calls `refresh` and returns its result, or that of another call as Directory::Refresh says.
  absl::Status Pass(absl::Time limit, const std::function<absl::Status()>& refresh);

 private:
  sync::Mutex mutex_;
  sync::CondVar changed_;
  bool is_under_way_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time ended_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Status result_ ABSL_GUARDED_BY(mutex_);
};

// Returns the options for one of the servers that `options` leads to.
Options OptionsAt(const Options& options, const std::string& address);

}  // namespace mneme::redis

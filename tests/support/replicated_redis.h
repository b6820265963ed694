// A real master and a replica of it that nobody watches, on this machine. For one that is replaced
// when it fails see redis_sentinels.h and redis_cluster.h.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/redis_server.h"

namespace mneme::testing {

// Not thread-safe; see RedisServer about the thread that starts it.
class ReplicatedRedis {
 public:
  // Returns once the replica is in step.
  static absl::StatusOr<std::unique_ptr<ReplicatedRedis>> Start();

  RedisServer& master() { return *master_; }
  RedisServer& replica() { return *replica_; }
  // Returns once the replica has what the master was told so far.
  absl::Status WaitUntilInStep();

 private:
  ReplicatedRedis() = default;

  std::unique_ptr<RedisServer> master_;
  std::unique_ptr<RedisServer> replica_;
  int num_steps_ = 0;
};

}  // namespace mneme::testing

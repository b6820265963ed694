// A real master with replicas and the Sentinels that watch it, all on this machine. A master that
// is killed is replaced about two seconds later.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/support/redis_server.h"

namespace mneme::testing {

struct RedisSentinelsOptions {
  int num_replicas = 1;
  std::string password;           // of the master and its replicas; "": none
  std::string sentinel_password;  // of the Sentinels; "": none
};

// Not thread-safe; see RedisServer about the thread that starts it.
class RedisSentinels {
 public:
  static constexpr char kMasterName[] = "mymaster";

  // Returns once the replicas are in step and each of the three Sentinels knows them.
  static absl::StatusOr<std::unique_ptr<RedisSentinels>> Start(
      const RedisSentinelsOptions& options = {});

  // Of the Sentinels.
  std::vector<std::string> addresses() const;
  // At first server 0 is the master.
  RedisServer& server(int i) { return *servers_[i]; }
  RedisServer& sentinel(int i) { return *sentinels_[i]; }

 private:
  RedisSentinels() = default;
  absl::Status WaitUntilKnown(const RedisSentinelsOptions& options);

  std::vector<std::unique_ptr<RedisServer>> servers_;
  std::vector<std::unique_ptr<RedisServer>> sentinels_;
};

}  // namespace mneme::testing

// A real Redis Cluster for tests: masters with a replica each, all on this machine. A master that
// is killed is replaced by its replica about three seconds later.
//
//   ASSERT_OK_AND_ASSIGN(auto cluster, RedisCluster::Start());
//   redis::Client client({.mode = redis::Mode::kCluster, .addresses = cluster->addresses()});
//   cluster->MasterOf(redis::HashSlot("key"))->Kill();
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/support/redis_server.h"

namespace mneme::testing {

struct RedisClusterOptions {
  int num_masters = 3;
  bool has_replicas = true;  // one of each master
  RedisServerOptions server = {.append_fsync = "no"};
};

// Not thread-safe; see RedisServer about the thread that starts it.
class RedisCluster {
 public:
  // Returns once every server knows all others, all hash slots are served and every replica is in
  // step with its master.
  static absl::StatusOr<std::unique_ptr<RedisCluster>> Start(
      const RedisClusterOptions& options = {});

  // Of all servers, the masters first.
  std::vector<std::string> addresses() const;
  // At first the masters are [0, num_masters) and server num_masters + i is the replica of i.
  RedisServer& server(int i) { return *servers_[i]; }
  int size() const { return static_cast<int>(servers_.size()); }

  // Returns the running server that says it is the master of the hash slot, null if none does.
  RedisServer* MasterOf(int slot);
  // Returns once every running server says that all slots have a master.
  absl::Status WaitUntilServed(absl::Duration timeout = absl::Seconds(30));
  // Returns the name by which the servers know it.
  static std::string IdOf(const RedisServer& server);

 private:
  RedisCluster() = default;
  absl::Status Join(int num_masters);

  std::vector<std::unique_ptr<RedisServer>> servers_;
  std::vector<int> bus_ports_;  // on which they talk to each other
};

}  // namespace mneme::testing

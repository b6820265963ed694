#include "tests/support/redis_cluster.h"

#include <chrono>
#include <functional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "tests/support/free_port.h"

namespace mneme::testing {
namespace {

constexpr int kNumSlots = 16384;

absl::Status WaitFor(const std::function<bool()>& condition, absl::Duration timeout,
                     absl::string_view what) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!condition()) {
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("the Redis Cluster never got there: ", what));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return absl::OkStatus();
}

absl::Status Demand(const RedisServer& server, absl::string_view line) {
  const std::string answer = server.Ask(line);
  if (answer == "+OK\r\n") return absl::OkStatus();
  return absl::InternalError(absl::StrCat(line, ": ", answer));
}

// Returns whether a line of CLUSTER NODES gives its node the slot.
bool HasSlot(absl::string_view line, int slot) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  for (size_t i = 8; i < words.size(); ++i) {
    const std::vector<absl::string_view> ends = absl::StrSplit(words[i], '-');
    int first = 0;
    int last = 0;
    if (absl::StartsWith(words[i], "[") || !absl::SimpleAtoi(ends.front(), &first) ||
        !absl::SimpleAtoi(ends.back(), &last)) {
      continue;
    }
    if (first <= slot && slot <= last) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisCluster>> RedisCluster::Start(
    const RedisClusterOptions& options) {
  std::unique_ptr<RedisCluster> cluster(new RedisCluster);
  const int size = options.num_masters * (options.has_replicas ? 2 : 1);
  for (int i = 0; i < size; ++i) {
    RedisServerOptions server = options.server;
    // By default it is the port plus 10000, which can be taken or too large.
    ASSIGN_OR_RETURN(const int bus_port, FreePort());
    for (const std::string& line :
         {std::string("cluster-enabled yes"), std::string("cluster-node-timeout 2000"),
          std::string("cluster-replica-validity-factor 0"),
          std::string("repl-diskless-sync-delay 0"), absl::StrCat("cluster-port ", bus_port)}) {
      server.config_lines.push_back(line);
    }
    ASSIGN_OR_RETURN(std::unique_ptr<RedisServer> started, RedisServer::Start(server));
    cluster->servers_.push_back(std::move(started));
    cluster->bus_ports_.push_back(bus_port);
  }
  RETURN_IF_ERROR(cluster->Join(options.num_masters));
  return cluster;
}

absl::Status RedisCluster::Join(int num_masters) {
  for (int i = 0; i < num_masters; ++i) {
    RETURN_IF_ERROR(Demand(server(i), absl::StrCat("CLUSTER SET-CONFIG-EPOCH ", i + 1)));
    RETURN_IF_ERROR(
        Demand(server(i), absl::StrCat("CLUSTER ADDSLOTSRANGE ", kNumSlots * i / num_masters, " ",
                                       kNumSlots * (i + 1) / num_masters - 1)));
  }
  for (int i = 0; i < size(); ++i) {
    for (int j = 0; j < i; ++j) {
      RETURN_IF_ERROR(Demand(server(i), absl::StrCat("CLUSTER MEET 127.0.0.1 ", server(j).port(),
                                                     " ", bus_ports_[j])));
    }
  }
  RETURN_IF_ERROR(WaitFor(
      [&] {
        for (const auto& server : servers_) {
          if (!absl::StrContains(server->Ask("CLUSTER INFO"),
                                 absl::StrCat("cluster_known_nodes:", size(), "\r"))) {
            return false;
          }
        }
        return true;
      },
      absl::Seconds(30), "all servers know each other"));
  for (int i = num_masters; i < size(); ++i) {
    const std::string line = absl::StrCat("CLUSTER REPLICATE ", IdOf(server(i - num_masters)));
    RETURN_IF_ERROR(WaitFor([&] { return server(i).Ask(line) == "+OK\r\n"; }, absl::Seconds(30),
                            "a replica takes its master"));
  }
  for (int i = num_masters; i < size(); ++i) {
    RETURN_IF_ERROR(WaitFor(
        [&] {
          return absl::StrContains(server(i).Ask("INFO replication"), "master_link_status:up") &&
                 absl::StrContains(server(0).Ask("CLUSTER NODES"),
                                   absl::StrCat(IdOf(server(i)), " ", server(i).address())) &&
                 absl::StrContains(server(i - num_masters).Ask("INFO replication"),
                                   "connected_slaves:1");
        },
        absl::Seconds(30), "a replica is in step"));
  }
  return WaitUntilServed();
}

std::vector<std::string> RedisCluster::addresses() const {
  std::vector<std::string> addresses;
  for (const auto& server : servers_) addresses.push_back(server->address());
  return addresses;
}

RedisServer* RedisCluster::MasterOf(int slot) {
  for (const auto& server : servers_) {
    const std::string nodes = server->Ask("CLUSTER NODES");
    for (const absl::string_view line : absl::StrSplit(nodes, '\n')) {
      if (absl::StrContains(line, "myself,master") && HasSlot(line, slot)) return server.get();
    }
  }
  return nullptr;
}

absl::Status RedisCluster::WaitUntilServed(absl::Duration timeout) {
  return WaitFor(
      [&] {
        for (const auto& server : servers_) {
          const std::string info = server->Ask("CLUSTER INFO");
          if (!info.empty() && (!absl::StrContains(info, "cluster_state:ok") ||
                                !absl::StrContains(info, "cluster_slots_ok:16384"))) {
            return false;
          }
        }
        return true;
      },
      timeout, "all hash slots are served");
}

std::string RedisCluster::IdOf(const RedisServer& server) {
  // "$40\r\n<id>\r\n"
  const std::string answer = server.Ask("CLUSTER MYID");
  return answer.size() > 45 ? answer.substr(5, 40) : answer;
}

}  // namespace mneme::testing

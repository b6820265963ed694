#include "tests/support/replicated_redis.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/status/status_macros.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {

absl::StatusOr<std::unique_ptr<ReplicatedRedis>> ReplicatedRedis::Start() {
  std::unique_ptr<ReplicatedRedis> both(new ReplicatedRedis);
  RedisServerOptions options = {.append_fsync = "no",
                                .config_lines = {"repl-diskless-sync-delay 0"}};
  ASSIGN_OR_RETURN(both->master_, RedisServer::Start(options));
  options.config_lines.push_back(absl::StrCat("replicaof 127.0.0.1 ", both->master_->port()));
  ASSIGN_OR_RETURN(both->replica_, RedisServer::Start(options));
  RETURN_IF_ERROR(both->WaitUntilInStep());
  return both;
}

absl::Status ReplicatedRedis::WaitUntilInStep() {
  // The master's commands reach the replica in their order.
  const std::string step = absl::StrCat("step-", ++num_steps_);
  if (master_->Ask(absl::StrCat("SET in ", step)) != "+OK\r\n") {
    return absl::InternalError("the master takes no writes");
  }
  const absl::Time deadline = absl::Now() + TimeLimit(absl::Seconds(30));
  while (!absl::StrContains(replica_->Ask("GET in"), absl::StrCat(step, "\r\n"))) {
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError("the replica never was in step with its master");
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::OkStatus();
}

}  // namespace mneme::testing

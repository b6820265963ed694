// Runs commands where they belong: on the master of their hash slot, or on the present master.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/redis/command.h"
#include "common/redis/directory.h"
#include "common/redis/options.h"
#include "common/redis/reply.h"
#include "common/redis/topology.h"

namespace mneme::redis {

// What certainly did not run is tried again until the time of the call is over: a server that could
// not be reached, and the answers MOVED, ASK, TRYAGAIN, CLUSTERDOWN, LOADING, MASTERDOWN, READONLY.
// So a call outlasts a failover that is quicker than command_timeout. What may have run is not
// tried again.
//
// A pipeline whose commands are on several servers is sent to all of them before the first reply is
// awaited. Nothing is sent before there is a connection to each; connections are taken in the order
// of addresses, so that two callers never wait for each other.
class Dispatcher final : public Topology {
 public:
  Dispatcher(const Options& options, std::unique_ptr<Directory> directory);

  absl::StatusOr<std::vector<Reply>> Run(absl::Span<const Command> commands, absl::Time deadline,
                                         Ack ack) override;
  absl::Status Ping(absl::Time deadline) override;
  absl::StatusOr<std::vector<std::string>> Masters(absl::Time deadline) override;
  absl::StatusOr<std::vector<Reply>> RunOn(const std::string& master,
                                           absl::Span<const Command> commands,
                                           absl::Time deadline) override;

 private:
  struct Pending;
  struct Group;
  struct Round;

  absl::StatusOr<std::vector<Reply>> RunUntil(absl::Span<const Command> commands, absl::Time limit,
                                              Ack ack);
  // Fills in the replies of what ran; the rest is left in `round`.
  absl::Status RunRound(absl::Span<const Command> commands, absl::Time limit, Ack ack, Round* round,
                        std::vector<Reply>* replies);
  // Distributes what is pending over its servers. UNAVAILABLE: one is not known.
  absl::StatusOr<std::vector<Group>> Route(const Round& round);
  // Decides what a reply means for a command: nothing, or what is still to be done.
  std::optional<Pending> Judge(const Pending& command, const Reply& reply,
                               const std::string& answered_by, Round* round);
  absl::Time LimitOf(absl::Time deadline) const;

  const absl::Duration command_timeout_;
  const std::unique_ptr<Directory> directory_;
};

}  // namespace mneme::redis

// One connection to a Redis server, encrypted or not, logged in, speaking RESP2.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/redis/command.h"
#include "common/redis/options.h"
#include "common/redis/reply.h"
#include "common/redis/reply_reader.h"
#include "common/redis/transport.h"

namespace mneme::redis {

// What a server must be for us to talk to it.
enum class Role {
  kAny,
  kMaster,  // UNAVAILABLE from Open where it says that it is a replica
};

// Used by one thread at a time.
class Connection {
 public:
  // Connects, logs in, selects the database and hears a PONG: a server that accepts connections but
  // is stopped or loading counts as unreachable. Errors name the address and what to do.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const Options& options, Role role,
                                                          absl::Time deadline);

  // Sends all commands at once and returns their replies in order, errors among them. A failure
  // leaves the connection unusable, and whether the commands ran unknown.
  absl::StatusOr<std::vector<Reply>> Run(absl::Span<const Command> commands, absl::Time deadline);

  // The two halves of Run.
  absl::Status Send(absl::Span<const Command> commands, absl::Time deadline);
  absl::StatusOr<std::vector<Reply>> Receive(size_t num_replies, absl::Time deadline);

  // Returns whether the connection is open and owes nobody a reply.
  bool IsQuiet() { return reader_.IsEmpty() && transport_->IsQuiet(); }

 private:
  Connection(std::unique_ptr<Transport> transport, const std::string& address);
  absl::Status LogIn(const Options& options, Role role, absl::Time deadline);

  const std::string address_;
  const std::unique_ptr<Transport> transport_;
  ReplyReader reader_;
};

}  // namespace mneme::redis

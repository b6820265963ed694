// One connection to a Redis server, logged in, speaking RESP2 (hiredis reads the replies).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/redis/reply.h"
#include "common/redis/socket.h"

struct redisReader;

namespace mneme::redis {

// A command's name and arguments; any bytes.
using Command = std::vector<std::string>;

// How a server is reached.
struct Options {
  std::string address;   // host:port
  std::string username;  // ACL user; "": the default one
  std::string password;  // "": no AUTH
  int database = 0;
  int pool_size = 8;  // connections
  absl::Duration connect_timeout = absl::Seconds(1);
  absl::Duration command_timeout = absl::Seconds(5);
};

// Used by one thread at a time.
class Connection {
 public:
  // Connects, logs in, selects the database and hears a PONG: a server that accepts connections but
  // is stopped or loading counts as unreachable. Errors name the address and what to do.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const Options& options,
                                                          absl::Time deadline);
  ~Connection();

  // Sends all commands at once and returns their replies in order, errors among them. A failure
  // leaves the connection unusable, and whether the commands ran unknown.
  absl::StatusOr<std::vector<Reply>> Run(const std::vector<Command>& commands, absl::Time deadline);

  // Returns whether the connection is open and owes nobody a reply.
  bool IsQuiet() const { return socket_.IsQuiet(); }

 private:
  Connection(Socket socket, std::string address);
  absl::Status LogIn(const Options& options, absl::Time deadline);
  absl::StatusOr<Reply> ReadReply(absl::Time deadline);

  struct ReaderDeleter {
    void operator()(redisReader* reader) const;
  };

  Socket socket_;
  const std::string address_;
  std::unique_ptr<redisReader, ReaderDeleter> reader_;
};

}  // namespace mneme::redis

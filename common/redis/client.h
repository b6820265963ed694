// Redis for this project's services: pooled connections, deadlines, pipelines, scripts and errors
// as Status. Start here; hiredis is seen by connection.cc and reply.cc only.
//
//   redis::Client client({.address = "127.0.0.1:6379"});
//   ASSIGN_OR_RETURN(redis::Reply reply, client.Run({"GET", key}, deadline));
//
// The client decides which server runs a command; Node is one server and Socket one transport. It
// knows one server now; several (Cluster) or a changing one (Sentinel) are more Nodes behind it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/redis/connection.h"
#include "common/redis/node.h"
#include "common/redis/reply.h"

namespace mneme::redis {

// A Lua script and the name that Redis gives it.
class Script {
 public:
  explicit Script(std::string source);

  const std::string& source() const { return source_; }
  const std::string& sha1() const { return sha1_; }  // 40 hexadecimal digits

 private:
  std::string source_;
  std::string sha1_;
};

// Thread-safe. Does not connect before the first call. Every call ends by its deadline and within
// command_timeout. UNAVAILABLE: the server cannot be reached or lost the connection, in which case
// the command may have run. DEADLINE_EXCEEDED: the caller's own deadline came first. Errors that
// Redis answers: see StatusOfError.
class Client {
 public:
  explicit Client(Options options) : node_(std::move(options)) {}

  absl::StatusOr<Reply> Run(const Command& command, absl::Time deadline = absl::InfiniteFuture());

  // Sends all commands at once. Error replies stay in the list: look at Reply::status().
  absl::StatusOr<std::vector<Reply>> RunPipeline(const std::vector<Command>& commands,
                                                 absl::Time deadline = absl::InfiniteFuture());

  // Runs a script by name, and by its source where the server does not know it. All keys must be of
  // one hash slot.
  absl::StatusOr<Reply> Eval(const Script& script, const std::vector<std::string>& keys,
                             const std::vector<std::string>& arguments,
                             absl::Time deadline = absl::InfiniteFuture());

  // Returns whether the server answers and takes commands.
  absl::Status Ping(absl::Time deadline = absl::InfiniteFuture());

  const std::string& address() const { return node_.options().address; }

 private:
  Node node_;
};

}  // namespace mneme::redis

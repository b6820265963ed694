// Redis for this project's services: pooled connections, TLS, deadlines, pipelines, scripts and
// errors as Status; one server, a Redis Cluster, or the master that Sentinels name. Start here.
//
//   redis::Client client({.address = "127.0.0.1:6379"});
//   ASSIGN_OR_RETURN(redis::Reply reply, client.Run({"GET", key}, deadline));
//
// Client -> Topology (which servers) -> Node (one server's pool) -> Connection -> Transport.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/redis/command.h"
#include "common/redis/options.h"
#include "common/redis/reply.h"
#include "common/redis/topology.h"

namespace mneme::redis {

// A Lua script and the name that Redis gives it.
class Script {
 public:
  // `ack` is of every call.
  explicit Script(std::string source, Ack ack = Ack::kServer);

  const std::string& source() const { return source_; }
  const std::string& sha1() const { return sha1_; }  // 40 hexadecimal digits
  Ack ack() const { return ack_; }

 private:
  std::string source_;
  std::string sha1_;
  Ack ack_;
};

// Thread-safe. Does not connect before the first call. Every call ends by its deadline and within
// command_timeout. UNAVAILABLE: the server cannot be reached or lost the connection, in which case
// the command may have run. DEADLINE_EXCEEDED: the caller's own deadline came first.
// FAILED_PRECONDITION: the settings do not fit the server. Errors that Redis answers: see
// StatusOfError.
//
// Calls with Ack::kReplicas succeed only once wait_for_replicas of the server's replicas have all
// that the call wrote, and so what was written before it on that server. With too few they are
// UNAVAILABLE, and have run. A repeated call makes sure only if it writes something too.
//
// With Cluster and Sentinels a call finds the present masters by itself, and goes on trying for as
// long as it may and the command has certainly not run (see Dispatcher).
class Client {
 public:
  explicit Client(Options options);

  absl::StatusOr<Reply> Run(const Command& command, absl::Time deadline = absl::InfiniteFuture(),
                            Ack ack = Ack::kServer);

  // Sends all commands at once and returns their replies in the same order. Error replies stay in
  // the list: look at Reply::status(). In a Cluster the commands may be for different hash slots;
  // those of one slot run in their order, except while that slot moves from server to server.
  absl::StatusOr<std::vector<Reply>> RunPipeline(const std::vector<Command>& commands,
                                                 absl::Time deadline = absl::InfiniteFuture());

  // Runs a script by name, and by its source where the server does not know it. INVALID_ARGUMENT:
  // the keys are not of one hash slot, be it a Cluster or not.
  absl::StatusOr<Reply> Eval(const Script& script, const std::vector<std::string>& keys,
                             const std::vector<Argument>& arguments,
                             absl::Time deadline = absl::InfiniteFuture());

  // Returns whether the server answers and takes commands; whether all parts of a Cluster do.
  absl::Status Ping(absl::Time deadline = absl::InfiniteFuture());

  // For what concerns every server's own keys (SCAN, FLUSHALL, CONFIG): Run refuses these in a
  // Cluster with INVALID_ARGUMENT. Returns the addresses of all masters, one without a Cluster.
  absl::StatusOr<std::vector<std::string>> Masters(absl::Time deadline = absl::InfiniteFuture());
  // Runs a command on one of Masters(). NOT_FOUND: that is no longer one.
  absl::StatusOr<Reply> RunOn(const std::string& master, const Command& command,
                              absl::Time deadline = absl::InfiniteFuture());
  // Runs a command on one master after the other and returns the replies in the order of Masters().
  // Ends at the first error.
  absl::StatusOr<std::vector<Reply>> RunOnEveryMaster(const Command& command,
                                                      absl::Time deadline = absl::InfiniteFuture());

  // What the client was told, for messages: "host:port", or several with commas.
  const std::string& address() const { return address_; }

 private:
  const std::string address_;
  const std::unique_ptr<Topology> topology_;
};

}  // namespace mneme::redis

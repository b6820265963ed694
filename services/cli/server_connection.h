// The connection of a command to the gateway: which server, with which key.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/cli/arguments.h"

namespace mneme::cli {

// What every command that calls a server lets its user choose.
struct ServerOptions {
  std::string server;  // host:port; "": the one that `mneme up` runs on the data folder
  std::string data;
  std::string key;  // API key; "": $MNEME_API_KEY, which may be empty too
  bool tls = false;
  std::string ca_file;  // PEM, for TLS; "": the system's own
};

// Adds --server, --data, --key, --tls and --ca. The options must outlive the parsing.
void AddServerOptions(Arguments& arguments, ServerOptions* options);

// Thread-safe.
class ServerConnection {
 public:
  // Does not wait for the server. FAILED_PRECONDITION: no server named and none running here, with
  // how to start one.
  static absl::StatusOr<ServerConnection> Open(const ServerOptions& options);

  const std::string& address() const { return address_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // How long to try while nobody answers: a server that `mneme up` watches over comes back.
  absl::Duration patience() const { return supervised_ ? absl::Seconds(15) : absl::Seconds(2); }

  // Fills in key, request id and, unless it is infinite, the deadline of a call.
  void Prepare(absl::Duration timeout, grpc::ClientContext* context) const;

  // Returns the error of a call as the user should read it: an unreachable server and a missing key
  // say what to do.
  absl::Status Explain(const grpc::Status& status) const;

 private:
  ServerConnection(std::string address, std::string key, std::shared_ptr<grpc::Channel> channel,
                   bool supervised)
      : address_(std::move(address)),
        key_(std::move(key)),
        channel_(std::move(channel)),
        supervised_(supervised) {}

  std::string address_;
  std::string key_;
  std::shared_ptr<grpc::Channel> channel_;
  bool supervised_;  // by a `mneme up` on this machine
};

// How long a call may take that only looks something up.
inline constexpr absl::Duration kLookupTimeout = absl::Seconds(15);

}  // namespace mneme::cli

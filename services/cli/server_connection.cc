#include "services/cli/server_connection.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/status_macros.h"
#include "common/trace/request_context.h"
#include "services/cli/data_folder.h"

namespace mneme::cli {

void AddServerOptions(Arguments& arguments, ServerOptions* options) {
  arguments.Option("server", "HOST:PORT", &options->server,
                   "gRPC address (default: what `mneme up` runs on the data folder)");
  arguments.Option("data", "DIR", &options->data,
                   "data folder (default $MNEME_DATA or ~/.local/share/mneme)");
  arguments.Option("key", "KEY", &options->key, "API key (default $MNEME_API_KEY)");
  arguments.Flag("tls", &options->tls, "the server speaks TLS");
  arguments.Option("ca", "FILE", &options->ca_file,
                   "PEM certificates that the server's must be signed by; implies --tls");
}

absl::StatusOr<ServerConnection> ServerConnection::Open(const ServerOptions& options) {
  std::string address = options.server;
  if (address.empty()) {
    absl::StatusOr<v1::UpState> state = DataFolder(options.data).ReadState();
    if (!state.ok()) {
      return absl::Status(state.status().code(),
                          absl::StrCat(state.status().message(),
                                       "\nor name a server elsewhere: --server HOST:PORT"));
    }
    address = state->grpc();
  }
  if (!absl::StrContains(address, ":")) {
    return absl::InvalidArgumentError(absl::StrCat("--server needs HOST:PORT: ", address));
  }
  std::string key = options.key.empty() ? Environment("MNEME_API_KEY") : options.key;
  const bool tls = options.tls || !options.ca_file.empty();
  std::shared_ptr<grpc::Channel> channel =
      tls ? rpc::ConnectToTls(address, options.ca_file) : rpc::ConnectTo(address);
  return ServerConnection(std::move(address), std::move(key), std::move(channel),
                          options.server.empty());
}

void ServerConnection::Prepare(absl::Duration timeout, grpc::ClientContext* context) const {
  rpc::Prepare(trace::ContextFrom("", ""), absl::Now() + timeout, context);
  if (!key_.empty()) context->AddMetadata("authorization", absl::StrCat("Bearer ", key_));
}

absl::Status ServerConnection::Explain(const grpc::Status& status) const {
  const absl::Status error = rpc::FromGrpc(status);
  if (absl::IsUnauthenticated(error)) {
    return absl::Status(error.code(),
                        absl::StrCat(error.message(),
                                     "\ngive an API key: --key KEY or MNEME_API_KEY; `mneme keys "
                                     "add` makes one"));
  }
  if (absl::IsUnavailable(error) && (absl::StrContains(error.message(), "connect") ||
                                     absl::StrContains(error.message(), "Connect"))) {
    return absl::Status(error.code(),
                        absl::StrCat("no server answers at ", address_, " (", error.message(),
                                     ")\n`mneme status` shows what runs, `mneme up` starts it"));
  }
  return error;
}

}  // namespace mneme::cli

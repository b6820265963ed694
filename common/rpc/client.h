// Channels to other services and what every call to them carries: deadline, request id, trace
// context.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/trace/request_context.h"

namespace mneme::rpc {

// Returns a channel to a service inside the system (no TLS on it). It connects lazily and
// reconnects by itself, at most 1 s apart, so that a restarted service is found again quickly.
std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address);

// Returns a channel to an address behind TLS, verified against the PEM file `root_certificates`
// ("": the system's own).
std::shared_ptr<grpc::Channel> ConnectToTls(const std::string& address,
                                            const std::string& root_certificates);

// Waits until the channel is connected. Returns false after `timeout`.
bool WaitForConnection(grpc::Channel& channel, absl::Duration timeout);

// Fills a client call's context. An infinite deadline sets none.
void Prepare(const trace::RequestContext& request, absl::Time deadline,
             grpc::ClientContext* context);

// Returns the request's context from a server call's metadata; what is missing is made anew.
trace::RequestContext ContextOf(const grpc::ServerContext& context);

// Returns one metadata value of a server call, "" where there is none.
std::string MetadataOf(const grpc::ServerContext& context, absl::string_view key);

// Returns the call's deadline, infinite where the caller set none.
absl::Time DeadlineOf(const grpc::ServerContext& context);

}  // namespace mneme::rpc

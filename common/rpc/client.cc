#include "common/rpc/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>

#include "common/config/config.h"

namespace mneme::rpc {
namespace {

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  // Despite its name also the time that one attempt has: on a busy machine 50 ms were too few.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetMaxReceiveMessageSize(-1);
  return arguments;
}

}  // namespace

std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address) {
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), Arguments());
}

std::shared_ptr<grpc::Channel> ConnectToTls(const std::string& address,
                                            const std::string& root_certificates) {
  grpc::SslCredentialsOptions ssl;
  if (!root_certificates.empty()) {
    // An unreadable file leaves the roots empty: the handshake then fails with its own message.
    ssl.pem_root_certs = config::ReadFile(root_certificates).value_or("");
  }
  return grpc::CreateCustomChannel(address, grpc::SslCredentials(ssl), Arguments());
}

bool WaitForConnection(grpc::Channel& channel, absl::Duration timeout) {
  return channel.WaitForConnected(std::chrono::system_clock::now() +
                                  absl::ToChronoMilliseconds(timeout));
}

void Prepare(const trace::RequestContext& request, absl::Time deadline,
             grpc::ClientContext* context) {
  if (deadline != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline));
  context->AddMetadata(std::string(trace::kRequestIdKey), request.request_id);
  context->AddMetadata(std::string(trace::kTraceparentKey), request.traceparent);
}

std::string MetadataOf(const grpc::ServerContext& context, absl::string_view key) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(grpc::string_ref(key.data(), key.size()));
  if (found == metadata.end()) return "";
  return std::string(found->second.data(), found->second.size());
}

trace::RequestContext ContextOf(const grpc::ServerContext& context) {
  return trace::ContextFrom(MetadataOf(context, trace::kRequestIdKey),
                            MetadataOf(context, trace::kTraceparentKey));
}

absl::Time DeadlineOf(const grpc::ServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

}  // namespace mneme::rpc

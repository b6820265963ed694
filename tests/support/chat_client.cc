#include "tests/support/chat_client.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/crypto/crc32c.h"
#include "common/rpc/grpc_status.h"
#include "common/status/status_macros.h"
#include "mneme/memory/v1/memory.grpc.pb.h"
#include "tests/support/time_limit.h"

namespace mneme::testing {
namespace {

namespace gv1 = gateway::v1;
namespace mv1 = memory::v1;

constexpr absl::Duration kRetryPause = absl::Milliseconds(50);

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 300);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

gv1::ChatRequest TurnOf(const std::string& session_id, const std::string& text, int max_tokens) {
  gv1::ChatRequest request;
  request.set_session_id(session_id);
  request.set_request_id(absl::StrFormat("%s-%08x", session_id, crypto::Crc32c(text)));
  auto* const message = request.add_messages();
  message->set_role("user");
  message->set_content(text);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

ChatClient::ChatClient(const std::string& address, std::string api_key)
    : api_key_(std::move(api_key)),
      chat_(gv1::ChatService::NewStub(ChannelTo(address))),
      sessions_(gv1::SessionService::NewStub(ChannelTo(address))) {}

std::unique_ptr<grpc::ClientContext> ChatClient::Context(absl::Duration timeout) const {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(absl::ToChronoTime(absl::Now() + TimeLimit(timeout)));
  if (!api_key_.empty()) context->AddMetadata("authorization", absl::StrCat("Bearer ", api_key_));
  return context;
}

ChatReply ChatClient::Chat(const gv1::ChatRequest& request, absl::Duration timeout,
                           const std::function<void(const std::string&)>& on_text) const {
  ChatReply reply;
  const std::unique_ptr<grpc::ClientContext> context = Context(timeout);
  const absl::Time sent = absl::Now();
  const auto reader = chat_->Chat(context.get(), request);
  gv1::ChatResponse event;
  while (reader->Read(&event)) {
    const absl::Duration elapsed = absl::Now() - sent;
    if (!event.text_delta().empty()) {
      if (reply.text.empty()) reply.first_text = elapsed;
      reply.last_text = elapsed;
      reply.text += event.text_delta();
      if (on_text) on_text(reply.text);
    }
    if (event.has_usage()) reply.usage = event.usage();
    if (event.has_receipt()) reply.receipt = event.receipt();
    if (event.event_case() == gv1::ChatResponse::kFinishReason) {
      reply.finish_reason = event.finish_reason();
    }
    if (event.has_done()) {
      reply.version = event.done().version();
      reply.done = elapsed;
    }
  }
  reply.status = rpc::FromGrpc(reader->Finish());
  return reply;
}

ChatReply ChatClient::ChatUntilCommitted(const gv1::ChatRequest& request, absl::Duration patience,
                                         int* retries) const {
  const absl::Time give_up = absl::Now() + TimeLimit(patience);
  while (true) {
    ChatReply reply = Chat(request, patience);
    if (reply.is_committed() || absl::Now() > give_up) return reply;
    if (retries != nullptr) ++*retries;
    absl::SleepFor(kRetryPause);
  }
}

absl::StatusOr<mv1::GetSessionResponse> StoredSession(const std::string& address,
                                                      const std::string& session_id,
                                                      const std::string& tenant) {
  const auto stub = mv1::MemoryService::NewStub(ChannelTo(address));
  mv1::GetSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_with_messages(true);
  request.set_with_tokens(true);
  const absl::Time give_up = absl::Now() + TimeLimit(absl::Seconds(30));
  while (true) {
    mv1::GetSessionResponse response;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + TimeLimit(absl::Seconds(10))));
    const absl::Status status = rpc::FromGrpc(stub->GetSession(&context, request, &response));
    if (status.ok()) return response;
    const bool away = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
    if (!away || absl::Now() > give_up) return status;
    absl::SleepFor(kRetryPause);
  }
}

absl::StatusOr<mv1::GetSessionResponse> StoredSession(const MnemeUp& up,
                                                      const std::string& session_id,
                                                      const std::string& tenant) {
  ASSIGN_OR_RETURN(const cli::v1::ServiceState service, up.ServiceOf("memory"));
  return StoredSession(service.address(), session_id, tenant);
}

}  // namespace mneme::testing

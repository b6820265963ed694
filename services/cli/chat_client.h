// Asks the gateway for an answer and takes it apart: text as it comes, then what it cost.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "services/cli/interrupt.h"
#include "services/cli/server_connection.h"

namespace mneme::cli {

struct ChatAnswer {
  std::string text;
  std::string model;
  std::string session_id;
  uint64_t version = 0;  // the session's, after this turn; 0: none
  inference::v1::FinishReason finish_reason = inference::v1::FINISH_REASON_UNSPECIFIED;
  inference::v1::Usage usage;
  inference::v1::MemoryReceipt receipt;
  bool has_receipt = false;
  bool interrupted = false;  // the user stopped it
  absl::Duration first_token;
  absl::Duration total;
  // After the first token; 0 where there was no second one.
  double tokens_per_second = 0;
};

// Not thread-safe.
class ChatClient {
 public:
  // Both must outlive the client.
  ChatClient(const ServerConnection& server, const Interrupt& interrupt)
      : server_(server),
        interrupt_(interrupt),
        stub_(gateway::v1::ChatService::NewStub(server.channel())) {}

  // Streams one answer; `on_text` gets each piece. While no text has come, a server that cannot be
  // reached is tried again for `patience` (the request id keeps a session's turn from being taken
  // twice). Ctrl-C ends the answer: OK, with `interrupted`.
  absl::StatusOr<ChatAnswer> Ask(gateway::v1::ChatRequest request, absl::Duration patience,
                                 const std::function<void(absl::string_view)>& on_text);

 private:
  grpc::Status AskOnce(const gateway::v1::ChatRequest& request, absl::Time begin,
                       const std::function<void(absl::string_view)>& on_text, ChatAnswer* answer);

  const ServerConnection& server_;
  const Interrupt& interrupt_;
  std::unique_ptr<gateway::v1::ChatService::Stub> stub_;
};

}  // namespace mneme::cli

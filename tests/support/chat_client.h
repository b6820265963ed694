// A client of the gateway's gRPC front: takes turns and keeps what came of them. And what the
// memory service has of a session, for comparison.
//
//   ChatClient client(up->grpc());
//   const ChatReply reply = client.Chat(TurnOf("s", "My name is Ada."));
//   EXPECT_EQ(reply.receipt.tier(), "redis");
#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "mneme/memory/v1/memory.pb.h"
#include "tests/support/mneme_up.h"

namespace mneme::testing {

struct ChatReply {
  absl::Status status;
  std::string text;
  inference::v1::FinishReason finish_reason = inference::v1::FINISH_REASON_UNSPECIFIED;
  inference::v1::Usage usage;
  inference::v1::MemoryReceipt receipt;
  uint64_t version = 0;  // the session's after the turn

  // Since the request was sent.
  absl::Duration first_text = absl::InfiniteDuration();
  absl::Duration last_text = absl::ZeroDuration();
  absl::Duration done = absl::InfiniteDuration();

  // The turn is answered and stored.
  bool is_committed() const { return status.ok() && receipt.persisted() && version > 0; }
};

// A turn of a session: greedy, and named after session and text, so that sending it again makes no
// second one.
gateway::v1::ChatRequest TurnOf(const std::string& session_id, const std::string& text,
                                int max_tokens = 16);

// Thread-safe.
class ChatClient {
 public:
  // Reconnects fast after the gateway was away. `api_key` may be empty.
  explicit ChatClient(const std::string& address, std::string api_key = "");

  // `on_text` is called with the text so far, each time there is more of it.
  ChatReply Chat(const gateway::v1::ChatRequest& request, absl::Duration timeout = absl::Minutes(2),
                 const std::function<void(const std::string&)>& on_text = nullptr) const;
  // Sends the request again until its turn is stored; counts in `*retries` how often that was
  // needed. The last reply where `patience` was not enough.
  ChatReply ChatUntilCommitted(const gateway::v1::ChatRequest& request,
                               absl::Duration patience = absl::Minutes(2),
                               int* retries = nullptr) const;

  // For calls that are not wrapped here: the context of one with key and deadline.
  std::unique_ptr<grpc::ClientContext> Context(absl::Duration timeout = absl::Minutes(1)) const;
  gateway::v1::ChatService::Stub& chat() const { return *chat_; }
  gateway::v1::SessionService::Stub& sessions() const { return *sessions_; }

 private:
  const std::string api_key_;
  const std::unique_ptr<gateway::v1::ChatService::Stub> chat_;
  const std::unique_ptr<gateway::v1::SessionService::Stub> sessions_;
};

// Returns a session with messages and token log as the memory service at `address` has it; waits
// for a service that is away.
absl::StatusOr<memory::v1::GetSessionResponse> StoredSession(const std::string& address,
                                                             const std::string& session_id,
                                                             const std::string& tenant = "default");
// Asks the memory service of `up`.
absl::StatusOr<memory::v1::GetSessionResponse> StoredSession(const MnemeUp& up,
                                                             const std::string& session_id,
                                                             const std::string& tenant = "default");

}  // namespace mneme::testing

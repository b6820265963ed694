// The conversation in a terminal: a prompt, streamed answers, commands that begin with '/'.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "services/cli/chat_client.h"
#include "services/cli/chat_settings.h"
#include "services/cli/interrupt.h"
#include "services/cli/line_editor.h"
#include "services/cli/server_connection.h"

namespace mneme::cli {

// Not thread-safe.
class ChatLoop {
 public:
  // `server` and `interrupt` must outlive it. `receipt`: shown after every answer.
  ChatLoop(const ServerConnection& server, const Interrupt& interrupt, ChatSettings settings,
           bool receipt, const std::string& history_file);

  // Until the user leaves.
  absl::Status Run();

 private:
  void Greet();
  // Returns false when the user wants to leave.
  bool Command(const std::string& line);
  void Say(const std::string& message);
  void UseSession(const std::string& session);
  absl::Status Save(const std::string& path) const;
  void ShowSettings() const;

  const ServerConnection& server_;
  const Interrupt& interrupt_;
  ChatClient client_;
  std::unique_ptr<gateway::v1::SessionService::Stub> sessions_;
  LineEditor editor_;
  ChatSettings settings_;
  bool show_receipt_;
  std::vector<inference::v1::Message>
      messages_;                          // of this conversation, as far as it is known here
  inference::v1::MemoryReceipt receipt_;  // of the last answer
  bool has_receipt_ = false;
};

// "42 tokens, 31.2 tokens/s, first token after 0.21 s"
std::string SpeedText(const ChatAnswer& answer);

// Returns an id for a new session: "chat-20261121-114503-1a2b".
std::string NewSessionId();

}  // namespace mneme::cli

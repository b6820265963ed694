// `mneme chat`: talks to a model, in the terminal or for a script.
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status/status_macros.h"
#include "nlohmann/json.hpp"
#include "services/cli/background_up.h"
#include "services/cli/chat_client.h"
#include "services/cli/chat_loop.h"
#include "services/cli/chat_settings.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/interrupt.h"
#include "services/cli/server_connection.h"

namespace mneme::cli {
namespace {

constexpr int kExitInterrupted = 130;

struct ChatFlags {
  ServerOptions server;
  ChatSettings settings;
  std::vector<std::string> words;  // of the message
  bool up = false;
  bool receipt = false;
  bool json = false;
};

std::string ToJson(const ChatAnswer& answer) {
  const auto parsed = [](const google::protobuf::Message& message) {
    return nlohmann::ordered_json::parse(ToJsonLine(message), nullptr, /*allow_exceptions=*/false);
  };
  nlohmann::ordered_json json = {
      {"text", answer.text},
      {"model", answer.model},
      {"session_id", answer.session_id},
      {"version", answer.version},
      {"finish_reason", inference::v1::FinishReason_Name(answer.finish_reason)},
      {"usage", parsed(answer.usage)}};
  if (answer.has_receipt) json["receipt"] = parsed(answer.receipt);
  json["first_token_seconds"] = absl::ToDoubleSeconds(answer.first_token);
  json["seconds"] = absl::ToDoubleSeconds(answer.total);
  json["tokens_per_second"] = answer.tokens_per_second;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// One answer for a script: the text to standard output, figures to standard error.
absl::StatusOr<int> AskOnce(const ChatFlags& flags, const ServerConnection& server,
                            const Interrupt& interrupt, const std::string& message) {
  if (absl::StripAsciiWhitespace(message).empty()) {
    return absl::InvalidArgumentError("the message is empty: give one as an argument, or as input");
  }
  ASSIGN_OR_RETURN(gateway::v1::ChatRequest request, RequestFor(flags.settings));
  bool with_system = !flags.settings.system.empty();
  if (with_system && !flags.settings.session.empty()) {
    // Only a session that has not begun takes a system message.
    const auto stub = gateway::v1::SessionService::NewStub(server.channel());
    gateway::v1::GetSessionRequest get;
    get.set_session_id(flags.settings.session);
    gateway::v1::GetSessionResponse got;
    grpc::ClientContext context;
    server.Prepare(kLookupTimeout, &context);
    with_system = !stub->GetSession(&context, get, &got).ok() || got.session().version() == 0;
  }
  if (with_system) {
    inference::v1::Message* system = request.add_messages();
    system->set_role("system");
    system->set_content(flags.settings.system);
  }
  inference::v1::Message* user = request.add_messages();
  user->set_role("user");
  user->set_content(message);
  ChatClient client(server, interrupt);
  const bool to_terminal = isatty(STDOUT_FILENO) != 0;
  ASSIGN_OR_RETURN(
      const ChatAnswer answer, client.Ask(request, server.patience(), [&](absl::string_view text) {
        if (flags.json) return;
        const std::string shown = to_terminal ? WithoutControls(text) : std::string(text);
        std::fwrite(shown.data(), 1, shown.size(), stdout);
        std::fflush(stdout);
      }));
  if (flags.json) {
    PrintLine(ToJson(answer));
  } else {
    PrintLine("");
    if (isatty(STDERR_FILENO) != 0) PrintErrorLine(SpeedText(answer));
    if (flags.receipt && answer.has_receipt) PrintErrorLine(ReceiptText(answer.receipt));
  }
  return answer.interrupted ? kExitInterrupted : kExitOk;
}

// The message of a script's call: the arguments, else standard input.
std::string MessageOf(const ChatFlags& flags) {
  if (!flags.words.empty()) return absl::StrJoin(flags.words, " ");
  return std::string((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
}

// Without a message it is a conversation.
absl::StatusOr<int> Chat(ChatFlags& flags, const std::optional<std::string>& message,
                         const Interrupt& interrupt) {
  const DataFolder folder(flags.server.data);
  std::optional<BackgroundUp> up;
  if (flags.up && flags.server.server.empty() && folder.RunningPid() == 0) {
    std::vector<std::string> arguments = {"--data", folder.path(), "--http-port",
                                          "0",      "--grpc-port", "0"};
    if (!flags.settings.model.empty()) {
      arguments.insert(arguments.end(), {"--model", flags.settings.model});
    }
    ASSIGN_OR_RETURN(BackgroundUp started, BackgroundUp::Start(arguments, interrupt));
    up.emplace(std::move(started));
    // A path has become a name.
    flags.settings.model = up->state().model();
    PrintErrorLine(absl::StrCat("mneme: OpenAI HTTP at http://", up->state().http(),
                                "/v1 while this chat runs"));
  }
  ASSIGN_OR_RETURN(const ServerConnection server, ServerConnection::Open(flags.server));
  if (message) return AskOnce(flags, server, interrupt, *message);
  const bool folder_exists = access(folder.path().c_str(), W_OK) == 0;
  ChatLoop loop(server, interrupt, flags.settings, flags.receipt,
                folder_exists ? folder.File("chat_history") : "");
  RETURN_IF_ERROR(loop.Run());
  return kExitOk;
}

}  // namespace

int ChatCommand(const std::vector<std::string>& words) {
  ChatFlags flags;
  Arguments arguments(
      "mneme chat",
      "Talks to a model. In a terminal it is a conversation in a session that the "
      "server remembers; with a message, or with input from elsewhere, one answer.");
  arguments.Positional("MESSAGE", 0, 10'000, &flags.words, "asks this and ends");
  AddChatOptions(arguments, &flags.settings);
  arguments.Flag("receipt", &flags.receipt, "shows what each answer did to the session's memory");
  arguments.Flag("up", &flags.up, "starts a server if none runs, and stops it at the end");
  arguments.Flag("json", &flags.json, "prints the answer, its usage and receipt as one line");
  AddServerOptions(arguments, &flags.server);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const bool interactive =
      flags.words.empty() && isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0;
  std::optional<std::string> message;
  if (!interactive) message = MessageOf(flags);
  // Before any thread, so that all of them leave Ctrl-C to it.
  const Interrupt interrupt;
  const absl::StatusOr<int> code = Chat(flags, message, interrupt);
  if (absl::IsCancelled(code.status())) {
    Fail(code.status());
    return kExitInterrupted;
  }
  return code.ok() ? *code : Fail(code.status());
}

}  // namespace mneme::cli

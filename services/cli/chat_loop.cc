#include "services/cli/chat_loop.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/config/config.h"
#include "common/status/status_macros.h"
#include "common/trace/request_context.h"
#include "nlohmann/json.hpp"
#include "services/cli/console.h"

namespace mneme::cli {
namespace {

constexpr char kPrompt[] = "> ";
constexpr char kHelp[] =
    "  /new               a new session\n"
    "  /session [ID]      shows the session, or goes on with another\n"
    "  /system TEXT       system message of a session that has not begun\n"
    "  /model [NAME]      shows or changes the model\n"
    "  /policy POLICY     memory policy: full, window:SINKS,RECENT, h2o:1/4, snapkv:1/4, beacon:8 "
    "…\n"
    "  /temperature T     0 is greedy\n"
    "  /receipt [on|off]  what the last answer did to the session's memory; after every answer\n"
    "  /save FILE         writes the conversation: JSON if FILE ends in .json, else Markdown\n"
    "  /help, /quit\n"
    "Ctrl-C stops an answer; Ctrl-D, or Ctrl-C twice at the prompt, leaves. Alt-Enter begins a new "
    "line.";

// What is not the answer itself is dimmed.
void Note(absl::string_view text) { PrintLine(absl::StrCat("\x1b[2m", text, "\x1b[0m")); }

inference::v1::Message MessageOf(const char* role, const std::string& content) {
  inference::v1::Message message;
  message.set_role(role);
  message.set_content(content);
  return message;
}

}  // namespace

std::string SpeedText(const ChatAnswer& answer) {
  std::string text = absl::StrCat(answer.usage.completion_tokens(), " tokens");
  if (answer.tokens_per_second > 0) {
    absl::StrAppendFormat(&text, ", %.1f tokens/s", answer.tokens_per_second);
  }
  absl::StrAppendFormat(&text, ", first token after %.2f s",
                        absl::ToDoubleSeconds(answer.first_token));
  if (answer.usage.cached_tokens() > 0) {
    absl::StrAppend(&text, ", ", answer.usage.cached_tokens(), " of ", answer.usage.prompt_tokens(),
                    " prompt tokens remembered");
  }
  return text;
}

std::string NewSessionId() {
  return absl::StrCat(absl::FormatTime("chat-%Y%m%d-%H%M%S-", absl::Now(), absl::LocalTimeZone()),
                      trace::RandomHex(4));
}

ChatLoop::ChatLoop(const ServerConnection& server, const Interrupt& interrupt,
                   ChatSettings settings, bool receipt, const std::string& history_file)
    : server_(server),
      interrupt_(interrupt),
      client_(server, interrupt),
      sessions_(gateway::v1::SessionService::NewStub(server.channel())),
      editor_(STDIN_FILENO, STDOUT_FILENO, history_file),
      settings_(std::move(settings)),
      show_receipt_(receipt) {}

void ChatLoop::ShowSettings() const {
  Note(absl::StrCat("session ", settings_.session, settings_.model.empty() ? "" : ", model ",
                    settings_.model, settings_.policy.empty() ? "" : ", policy ",
                    settings_.policy));
}

void ChatLoop::Greet() {
  Note(absl::StrCat("Mneme at ", server_.address(), ". /help shows the commands."));
  UseSession(settings_.session.empty() ? NewSessionId() : settings_.session);
}

void ChatLoop::UseSession(const std::string& session) {
  settings_.session = session;
  messages_.clear();
  has_receipt_ = false;
  gateway::v1::GetSessionRequest request;
  request.set_session_id(session);
  request.set_with_messages(true);
  gateway::v1::GetSessionResponse response;
  grpc::ClientContext context;
  server_.Prepare(kLookupTimeout, &context);
  const grpc::Status status = sessions_->GetSession(&context, request, &response);
  if (status.ok()) {
    messages_.assign(response.messages().begin(), response.messages().end());
    Note(absl::StrCat("session ", session, ": ", messages_.size(), " messages so far"));
    return;
  }
  if (status.error_code() != grpc::StatusCode::NOT_FOUND) Fail(server_.Explain(status));
  ShowSettings();
}

absl::Status ChatLoop::Run() {
  Greet();
  bool gave_up_once = false;
  while (true) {
    std::string line;
    switch (editor_.ReadLine(kPrompt, &line)) {
      case LineEditor::Result::kEnd:
        return absl::OkStatus();
      case LineEditor::Result::kInterrupted:
        if (gave_up_once) return absl::OkStatus();
        gave_up_once = true;
        Note("Ctrl-C again, or Ctrl-D, leaves.");
        continue;
      case LineEditor::Result::kLine:
        break;
    }
    gave_up_once = false;
    const std::string text(absl::StripAsciiWhitespace(line));
    if (text.empty()) continue;
    if (text[0] != '/') {
      Say(line);
    } else if (!Command(text)) {
      return absl::OkStatus();
    }
  }
}

void ChatLoop::Say(const std::string& message) {
  absl::StatusOr<gateway::v1::ChatRequest> request = RequestFor(settings_);
  if (!request.ok()) {
    Fail(request.status());
    return;
  }
  // The server keeps the session's messages: only what is new is sent.
  std::vector<inference::v1::Message> added;
  if (messages_.empty() && !settings_.system.empty()) {
    added.push_back(MessageOf("system", settings_.system));
  }
  added.push_back(MessageOf("user", message));
  for (const inference::v1::Message& each : added) *request->add_messages() = each;
  const absl::StatusOr<ChatAnswer> answer =
      client_.Ask(*request, server_.patience(), [](absl::string_view text) {
        const std::string clean = WithoutControls(text);
        std::fwrite(clean.data(), 1, clean.size(), stdout);
        std::fflush(stdout);
      });
  PrintLine("");
  if (!answer.ok()) {
    Fail(answer.status());
    return;
  }
  if (answer->interrupted) {
    Note("stopped; this turn is not part of the session");
    return;
  }
  messages_.insert(messages_.end(), added.begin(), added.end());
  messages_.push_back(MessageOf("assistant", answer->text));
  receipt_ = answer->receipt;
  has_receipt_ = answer->has_receipt;
  Note(SpeedText(*answer));
  if (has_receipt_ && !receipt_.persisted() && !receipt_.not_persisted_reason().empty()) {
    Note(absl::StrCat("this turn is not stored yet: ", receipt_.not_persisted_reason()));
  }
  if (show_receipt_ && has_receipt_) Note(ReceiptText(receipt_));
}

bool ChatLoop::Command(const std::string& line) {
  const size_t space = line.find(' ');
  const std::string name = line.substr(0, space);
  const std::string argument(absl::StripAsciiWhitespace(
      space == std::string::npos ? absl::string_view() : absl::string_view(line).substr(space)));
  if (name == "/quit" || name == "/exit") return false;
  if (name == "/help") {
    Note(kHelp);
  } else if (name == "/new") {
    UseSession(NewSessionId());
  } else if (name == "/session") {
    argument.empty() ? ShowSettings() : UseSession(argument);
  } else if (name == "/system") {
    settings_.system = argument;
    if (!messages_.empty()) Note("this session has begun already: it counts from the next /new on");
  } else if (name == "/model") {
    if (!argument.empty()) settings_.model = argument;
    ShowSettings();
  } else if (name == "/policy") {
    const absl::Status valid = ParsePolicy(argument).status();
    if (valid.ok()) settings_.policy = argument;
    valid.ok() ? ShowSettings() : void(Fail(valid));
  } else if (name == "/temperature") {
    double value = 0;
    if (absl::SimpleAtod(argument, &value) && value >= 0) {
      settings_.temperature = value;
    } else {
      Fail(absl::InvalidArgumentError("/temperature needs a number that is not negative"));
    }
  } else if (name == "/receipt") {
    if (argument == "on" || argument == "off") {
      show_receipt_ = argument == "on";
    } else {
      Note(has_receipt_ ? ReceiptText(receipt_) : "there is no answer yet");
    }
  } else if (name == "/save") {
    const absl::Status saved = Save(argument);
    saved.ok() ? Note(absl::StrCat("written: ", argument)) : void(Fail(saved));
  } else {
    const std::string nearest =
        NearestWord(name, {"/new", "/session", "/system", "/model", "/policy", "/temperature",
                           "/receipt", "/save", "/help", "/quit"});
    Note(absl::StrCat("no such command: ", name,
                      nearest.empty() ? "" : absl::StrCat(": did you mean ", nearest, "?"),
                      " (/help shows them)"));
  }
  return true;
}

absl::Status ChatLoop::Save(const std::string& path) const {
  if (path.empty()) return absl::InvalidArgumentError("/save needs a file name");
  std::string content;
  if (absl::EndsWith(path, ".json")) {
    nlohmann::ordered_json messages = nlohmann::ordered_json::array();
    for (const inference::v1::Message& message : messages_) {
      messages.push_back({{"role", message.role()}, {"content", message.content()}});
    }
    content = messages.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  } else {
    for (const inference::v1::Message& message : messages_) {
      absl::StrAppend(&content, "## ", message.role(), "\n\n", message.content(), "\n\n");
    }
  }
  return config::WriteFileAtomically(path, content, 0600);
}

}  // namespace mneme::cli

// `mneme sessions`: lists, shows and deletes sessions.
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/server_connection.h"

namespace mneme::cli {
namespace {

namespace gw = gateway::v1;

std::string TimeText(int64_t unix_ms) {
  return absl::FormatTime("%Y-%m-%d %H:%M", absl::FromUnixMillis(unix_ms), absl::LocalTimeZone());
}

int List(const std::vector<std::string>& words) {
  ServerOptions options;
  std::string model;
  bool json = false;
  Arguments arguments("mneme sessions list", "Lists sessions, the most recently used first.");
  arguments.Option("model", "M", &model, "only those of this model");
  arguments.Flag("json", &json, "prints one line of JSON per session");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<ServerConnection> server = ServerConnection::Open(options);
  if (!server.ok()) return Fail(server.status());
  const auto stub = gw::SessionService::NewStub(server->channel());
  std::vector<std::vector<std::string>> rows = {
      {"session", "model", "turns", "messages", "tokens", "last used", "title"}};
  gw::ListSessionsRequest request;
  request.set_model(model);
  do {
    gw::ListSessionsResponse response;
    grpc::ClientContext context;
    server->Prepare(kLookupTimeout, &context);
    const grpc::Status status = stub->ListSessions(&context, request, &response);
    if (!status.ok()) return Fail(server->Explain(status));
    for (const gw::Session& session : response.sessions()) {
      if (json) PrintLine(ToJsonLine(session));
      rows.push_back({session.session_id(), session.model(), absl::StrCat(session.version()),
                      absl::StrCat(session.num_messages()), absl::StrCat(session.num_tokens()),
                      TimeText(session.used_unix_ms()), WithoutControls(session.title())});
    }
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  if (!json) PrintLine(rows.size() == 1 ? "no sessions" : Table(rows));
  return kExitOk;
}

int Show(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  bool json = false;
  Arguments arguments("mneme sessions show", "Shows a session with its messages.");
  arguments.Positional("ID", 1, 1, &ids, "the session");
  arguments.Flag("json", &json, "prints one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<ServerConnection> server = ServerConnection::Open(options);
  if (!server.ok()) return Fail(server.status());
  gw::GetSessionRequest request;
  request.set_session_id(ids[0]);
  request.set_with_messages(true);
  gw::GetSessionResponse response;
  grpc::ClientContext context;
  server->Prepare(kLookupTimeout, &context);
  const grpc::Status status =
      gw::SessionService::NewStub(server->channel())->GetSession(&context, request, &response);
  if (!status.ok()) return Fail(server->Explain(status));
  if (json) {
    PrintLine(ToJsonLine(response));
    return kExitOk;
  }
  const gw::Session& session = response.session();
  PrintLine(Table({{"session", session.session_id()},
                   {"model", session.model()},
                   {"turns", absl::StrCat(session.version())},
                   {"tokens", absl::StrCat(session.num_tokens())},
                   {"made", TimeText(session.created_unix_ms())},
                   {"last used", TimeText(session.used_unix_ms())}}));
  for (const inference::v1::Message& message : response.messages()) {
    PrintLine(absl::StrCat("## ", WithoutControls(message.role()), "\n\n",
                           WithoutControls(message.content()), "\n"));
  }
  return kExitOk;
}

int Delete(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  Arguments arguments("mneme sessions delete", "Deletes sessions and all that they hold.");
  arguments.Positional("ID", 1, 1000, &ids, "the sessions");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  const absl::StatusOr<ServerConnection> server = ServerConnection::Open(options);
  if (!server.ok()) return Fail(server.status());
  const auto stub = gw::SessionService::NewStub(server->channel());
  for (const std::string& id : ids) {
    gw::DeleteSessionRequest request;
    request.set_session_id(id);
    gw::DeleteSessionResponse response;
    grpc::ClientContext context;
    server->Prepare(kLookupTimeout, &context);
    const grpc::Status status = stub->DeleteSession(&context, request, &response);
    if (!status.ok()) return Fail(server->Explain(status));
    PrintLine(absl::StrCat("deleted: ", id));
  }
  return kExitOk;
}

}  // namespace

int SessionsCommand(const std::vector<std::string>& words) {
  return RunSubcommand("mneme sessions", "Lists, shows and deletes sessions.",
                       {{"list", "lists sessions, the most recently used first", List},
                        {"show", "shows a session with its messages", Show},
                        {"delete", "deletes sessions and all that they hold", Delete}},
                       words);
}

}  // namespace mneme::cli

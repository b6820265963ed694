// `mneme sessions`: everything that can be done to sessions but to talk.
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "mneme/gateway/v1/session.grpc.pb.h"
#include "services/cli/chat_settings.h"
#include "services/cli/commands.h"
#include "services/cli/console.h"
#include "services/cli/server_connection.h"
#include "services/cli/session_files.h"

namespace mneme::cli {
namespace {

namespace gw = gateway::v1;

// All of a large session's memory may be read and written anew.
constexpr absl::Duration kCompactTimeout = absl::Minutes(10);

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
                   {"last used", TimeText(session.used_unix_ms())},
                   {"stored memory", absl::StrCat(session.kv_bytes(), " bytes")},
                   {"pinned", session.pinned() ? "yes" : "no"}}));
  for (const inference::v1::Message& message : response.messages()) {
    PrintLine(absl::StrCat("## ", WithoutControls(message.role()), "\n\n",
                           WithoutControls(message.content()), "\n"));
  }
  return kExitOk;
}

int Delete(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  bool json = false;
  Arguments arguments("mneme sessions delete", "Deletes sessions and all that they hold.");
  arguments.Positional("ID", 1, 1000, &ids, "the sessions");
  arguments.Flag("json", &json, "prints one line of JSON per session");
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
    // An id has no character that JSON would escape.
    PrintLine(json ? absl::StrCat("{\"deleted\":\"", id, "\"}") : absl::StrCat("deleted: ", id));
  }
  return kExitOk;
}

// A call of the session service that takes a request and gives a response.
template <typename Request, typename Response>
absl::StatusOr<Response> CallServer(const ServerOptions& options,
                                    grpc::Status (gw::SessionService::Stub::*method)(
                                        grpc::ClientContext*, const Request&, Response*),
                                    const Request& request,
                                    absl::Duration timeout = kLookupTimeout) {
  ASSIGN_OR_RETURN(const ServerConnection server, ServerConnection::Open(options));
  const auto stub = gw::SessionService::NewStub(server.channel());
  Response response;
  grpc::ClientContext context;
  server.Prepare(timeout, &context);
  const grpc::Status status = (stub.get()->*method)(&context, request, &response);
  if (!status.ok()) return server.Explain(status);
  return response;
}

// Says what became of a session.
int Tell(const gw::Session& session, absl::string_view what, bool json) {
  PrintLine(json ? ToJsonLine(session)
                 : absl::StrCat(what, ": ", session.session_id(), ", version ", session.version()));
  return kExitOk;
}

int Fork(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  std::optional<uint64_t> version;
  std::string title;
  bool json = false;
  Arguments arguments("mneme sessions fork",
                      "Makes a new session that begins with another's turns; what is stored is "
                      "shared.");
  arguments.Positional("ID [NEW]", 1, 2, &ids, "the session, and what the new one is called");
  arguments.Option("version", "N", &version, "only the turns up to this version (default: all)");
  arguments.Option("title", "TEXT", &title, "the new session's title (default: the same)");
  arguments.Flag("json", &json, "prints the new session as one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  gw::ForkSessionRequest request;
  request.set_session_id(ids[0]);
  if (ids.size() > 1) request.set_new_session_id(ids[1]);
  if (version) request.set_version(*version);
  request.set_title(title);
  const auto made = CallServer(options, &gw::SessionService::Stub::ForkSession, request);
  if (!made.ok()) return Fail(made.status());
  return Tell(made->session(), "forked", json);
}

int Rewind(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  std::optional<uint64_t> version;
  bool json = false;
  Arguments arguments("mneme sessions rewind",
                      "Takes a session back to an earlier version; later turns are dropped.");
  arguments.Positional("ID", 1, 1, &ids, "the session");
  arguments.Option("version", "N", &version,
                   "the version to go back to; 0: before the first turn (default: one turn back)");
  arguments.Flag("json", &json, "prints the session as one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  gw::RewindSessionRequest request;
  request.set_session_id(ids[0]);
  if (!version) {
    gw::GetSessionRequest get;
    get.set_session_id(ids[0]);
    const auto found = CallServer(options, &gw::SessionService::Stub::GetSession, get);
    if (!found.ok()) return Fail(found.status());
    if (found->session().version() == 0) {
      return Fail(absl::FailedPreconditionError("the session has no turn yet"));
    }
    version = found->session().version() - 1;
  }
  request.set_version(*version);
  const auto rewound = CallServer(options, &gw::SessionService::Stub::RewindSession, request);
  if (!rewound.ok()) return Fail(rewound.status());
  return Tell(rewound->session(), "rewound", json);
}

int Compact(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  std::optional<uint64_t> parent_version;
  std::string policy;
  std::string encoding;
  bool drop_older = false;
  bool json = false;
  Arguments arguments("mneme sessions compact",
                      "Makes a session's stored memory smaller; the conversation stays as it is.");
  arguments.Positional("ID", 1, 1, &ids, "the session");
  arguments.Option("policy", "POLICY", &policy,
                   "keeps it under a tighter policy: window:SINKS,RECENT (tokens), e.g. "
                   "window:4,1024");
  arguments.Option("encoding", "E", &encoding, "rounds it to 8 bits: int8 or fp8");
  arguments.Flag("drop-older", &drop_older,
                 "drops the memory of earlier versions; a rewind to them computes it again");
  arguments.Option("parent-version", "N", &parent_version,
                   "only if this is still the session's version");
  arguments.Flag("json", &json, "prints what was saved as one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  gw::CompactSessionRequest request;
  request.set_session_id(ids[0]);
  if (!policy.empty()) {
    const absl::StatusOr<inference::v1::MemoryPolicy> parsed = ParsePolicy(policy);
    if (!parsed.ok()) return Fail(parsed.status());
    *request.mutable_memory_policy() = *parsed;
  }
  if (encoding == "int8") {
    request.set_encoding(gw::COMPACT_ENCODING_INT8);
  } else if (encoding == "fp8") {
    request.set_encoding(gw::COMPACT_ENCODING_FP8);
  } else if (!encoding.empty()) {
    return Fail(absl::InvalidArgumentError(
        absl::StrCat("no such encoding: ", encoding, "\nthere are int8 and fp8")));
  }
  if (policy.empty() && encoding.empty() && !drop_older) {
    return Fail(
        absl::InvalidArgumentError("nothing to do: give --policy, --encoding or --drop-older"));
  }
  request.set_drop_older_snapshots(drop_older);
  if (parent_version) request.set_parent_version(*parent_version);
  const auto made =
      CallServer(options, &gw::SessionService::Stub::CompactSession, request, kCompactTimeout);
  if (!made.ok()) return Fail(made.status());
  if (json) {
    PrintLine(ToJsonLine(*made));
    return kExitOk;
  }
  PrintLine(absl::StrCat("compacted: ", made->session().session_id(), ", stored memory ",
                         made->kv_bytes_before(), " -> ", made->kv_bytes_after(), " bytes, ",
                         made->entries_before(), " -> ", made->entries_after(), " entries"));
  if (made->snapshots_dropped() > 0) {
    PrintLine(absl::StrCat("memory dropped of earlier versions: ", made->snapshots_dropped()));
  }
  return kExitOk;
}

int Versions(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  bool json = false;
  Arguments arguments("mneme sessions versions",
                      "Shows a session's committed versions and where its memory lies.");
  arguments.Positional("ID", 1, 1, &ids, "the session");
  arguments.Flag("json", &json, "prints one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  gw::DescribeSessionRequest request;
  request.set_session_id(ids[0]);
  const auto found = CallServer(options, &gw::SessionService::Stub::DescribeSession, request);
  if (!found.ok()) return Fail(found.status());
  if (json) {
    PrintLine(ToJsonLine(*found));
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {
      {"version", "committed", "tokens", "stored tokens", "stored bytes", "own bytes"}};
  for (const auto& version : found->versions()) {
    rows.push_back({absl::StrCat(version.version()), TimeText(version.committed_unix_ms()),
                    absl::StrCat(version.num_tokens()), absl::StrCat(version.snapshot_tokens()),
                    absl::StrCat(version.snapshot_bytes()), absl::StrCat(version.own_bytes())});
  }
  PrintLine(Table(rows));
  for (const auto& [tier, bytes] : found->bytes_by_tier()) {
    PrintLine(absl::StrCat(tier, ": ", bytes, " bytes"));
  }
  if (found->shares_with_size() > 0) {
    PrintLine(absl::StrCat("shared with other sessions: ", found->shared_bytes(), " bytes"));
  }
  return kExitOk;
}

int Pin(const std::vector<std::string>& words) {
  ServerOptions options;
  std::vector<std::string> ids;
  bool off = false;
  bool json = false;
  Arguments arguments("mneme sessions pin",
                      "Keeps a session: it never expires and is the last to leave the fast tiers.");
  arguments.Positional("ID", 1, 1, &ids, "the session");
  arguments.Flag("off", &off, "takes it back");
  arguments.Flag("json", &json, "prints the session as one line of JSON");
  AddServerOptions(arguments, &options);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  gw::UpdateSessionRequest request;
  request.set_session_id(ids[0]);
  request.set_pinned(!off);
  const auto updated = CallServer(options, &gw::SessionService::Stub::UpdateSession, request);
  if (!updated.ok()) return Fail(updated.status());
  return Tell(updated->session(), off ? "not pinned" : "pinned", json);
}

}  // namespace

int SessionsCommand(const std::vector<std::string>& words) {
  return RunSubcommand(
      "mneme sessions", "Lists, shows, copies, moves and deletes sessions.",
      {{"list", "lists sessions, the most recently used first", List},
       {"show", "shows a session with its messages", Show},
       {"versions", "shows a session's versions and where its memory lies", Versions},
       {"fork", "makes a new session that begins with another's turns", Fork},
       {"rewind", "takes a session back to an earlier version", Rewind},
       {"compact", "makes a session's stored memory smaller", Compact},
       {"export", "writes a session to a file", ExportSession},
       {"import", "makes a session from such a file", ImportSession},
       {"pin", "keeps a session from expiring", Pin},
       {"delete", "deletes sessions and all that they hold", Delete},
       {"forget-tenant", "deletes everything that a tenant has", ForgetTenant}},
      words);
}

}  // namespace mneme::cli

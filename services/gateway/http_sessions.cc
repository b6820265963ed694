#include "services/gateway/http_sessions.h"

#include <httplib.h>

#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/json_fields.h"
#include "services/gateway/json_text.h"
#include "services/gateway/memory_policy_json.h"

namespace mneme::gateway {
namespace {

using Request = httplib::Request;
using Response = httplib::Response;
using Exchange = std::shared_ptr<HttpExchange>;

constexpr int64_t kMaxJsonInteger = int64_t{1} << 53;

void AppendSession(const v1::Session& session, std::string* out) {
  *out += "{\"id\":";
  AppendJsonString(session.session_id(), out);
  *out += ",\"object\":\"session\",\"model\":";
  AppendJsonString(session.model(), out);
  absl::StrAppend(
      out, ",\"version\":", session.version(), ",\"created_at\":", session.created_unix_ms() / 1000,
      ",\"used_at\":", session.used_unix_ms() / 1000, ",\"num_messages\":", session.num_messages(),
      ",\"num_tokens\":", session.num_tokens(), ",\"title\":");
  AppendJsonString(session.title(), out);
  *out += ",\"memory_policy\":";
  AppendMemoryPolicy(session.memory_policy(), out);
  absl::StrAppend(out, ",\"ttl_seconds\":", session.ttl_seconds(),
                  ",\"pinned\":", session.pinned() ? "true" : "false",
                  ",\"kv_bytes\":", session.kv_bytes(), ",\"parent\":");
  if (session.parent_session().empty()) {
    *out += "null}";
    return;
  }
  *out += "{\"id\":";
  AppendJsonString(session.parent_session(), out);
  absl::StrAppend(out, ",\"version\":", session.parent_session_version(), "}}");
}

std::string ToJson(const v1::Session& session) {
  std::string json;
  AppendSession(session, &json);
  return json + "\n";
}

void AppendDescription(const v1::DescribeSessionResponse& found, std::string* out) {
  *out += "{\"object\":\"list\",\"data\":[";
  for (int i = 0; i < found.versions_size(); ++i) {
    const auto& version = found.versions(i);
    absl::StrAppend(out, i > 0 ? "," : "",
                    "{\"object\":\"session.version\",\"version\":", version.version(),
                    ",\"committed_at\":", version.committed_unix_ms() / 1000,
                    ",\"num_tokens\":", version.num_tokens(),
                    ",\"snapshot_tokens\":", version.snapshot_tokens(),
                    ",\"snapshot_bytes\":", version.snapshot_bytes(),
                    ",\"own_bytes\":", version.own_bytes(), ",\"request_id\":");
    AppendJsonString(version.request_id(), out);
    *out += '}';
  }
  *out += "],\"bytes_by_tier\":{";
  bool first = true;
  for (const auto& [tier, bytes] : found.bytes_by_tier()) {
    if (!std::exchange(first, false)) *out += ',';
    AppendJsonString(tier, out);
    absl::StrAppend(out, ":", bytes);
  }
  absl::StrAppend(out, "},\"shared_bytes\":", found.shared_bytes(), ",\"shares_with\":[");
  for (int i = 0; i < found.shares_with_size(); ++i) {
    if (i > 0) *out += ',';
    AppendJsonString(found.shares_with(i), out);
  }
  absl::StrAppend(out, "],\"busy\":", found.busy() ? "true" : "false", ",\"executor\":");
  AppendJsonString(found.executor(), out);
  *out += "}\n";
}

// A body that may be left out.
absl::StatusOr<Json> ParseBody(const Request& request) {
  if (request.body.empty()) return Json::object();
  return ParseObject(request.body);
}

std::string RequestIdOf(JsonFields& fields, const Request& request) {
  return fields.String("request_id").value_or(request.get_header_value("Idempotency-Key"));
}

absl::StatusOr<std::string> CreateSession(const SessionDirectory& sessions, const Request& request,
                                          const Caller& caller) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(request));
  JsonFields fields(json);
  v1::CreateSessionRequest create;
  create.set_session_id(fields.String("id").value_or(""));
  create.set_model(fields.String("model").value_or(""));
  create.set_title(fields.String("title").value_or(""));
  create.set_ttl_seconds(fields.Integer("ttl_seconds", 0, kMaxJsonInteger).value_or(0));
  create.set_request_id(RequestIdOf(fields, request));
  if (fields.Has("memory_policy")) ReadMemoryPolicy(fields, create.mutable_memory_policy());
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(const v1::CreateSessionResponse made, sessions.Create(create, caller));
  return ToJson(made.session());
}

absl::StatusOr<std::string> ListSessions(const SessionDirectory& sessions, const Request& request,
                                         const Caller& caller) {
  v1::ListSessionsRequest list;
  if (request.has_param("limit")) {
    int32_t limit = 0;
    if (!absl::SimpleAtoi(request.get_param_value("limit"), &limit) || limit < 1 || limit > 1000) {
      return status::InvalidField("limit", "must lie between 1 and 1000");
    }
    list.set_page_size(limit);
  }
  list.set_page_token(request.get_param_value("after"));
  list.set_model(request.get_param_value("model"));
  ASSIGN_OR_RETURN(const v1::ListSessionsResponse found, sessions.List(list, caller));
  std::string json = "{\"object\":\"list\",\"data\":[";
  for (int i = 0; i < found.sessions_size(); ++i) {
    if (i > 0) json += ',';
    AppendSession(found.sessions(i), &json);
  }
  absl::StrAppend(&json, "],\"has_more\":", found.next_page_token().empty() ? "false" : "true",
                  ",\"next\":");
  AppendJsonString(found.next_page_token(), &json);
  return json + "}\n";
}

absl::StatusOr<std::string> GetSession(const SessionDirectory& sessions, const Request& request,
                                       const Caller& caller) {
  v1::GetSessionRequest get;
  get.set_session_id(request.matches[1].str());
  ASSIGN_OR_RETURN(const v1::GetSessionResponse found, sessions.Get(get, caller));
  return ToJson(found.session());
}

absl::StatusOr<std::string> UpdateSession(const SessionDirectory& sessions, const Request& request,
                                          const Caller& caller) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(request.body));
  JsonFields fields(json);
  v1::UpdateSessionRequest update;
  update.set_session_id(request.matches[1].str());
  if (const auto title = fields.String("title")) update.set_title(*title);
  if (const auto seconds = fields.Integer("ttl_seconds", 0, kMaxJsonInteger)) {
    update.set_ttl_seconds(*seconds);
  }
  if (const auto pinned = fields.Bool("pinned")) update.set_pinned(*pinned);
  if (fields.Has("memory_policy")) ReadMemoryPolicy(fields, update.mutable_memory_policy());
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(const v1::UpdateSessionResponse updated, sessions.Update(update, caller));
  return ToJson(updated.session());
}

absl::StatusOr<std::string> DeleteSession(const SessionDirectory& sessions, const Request& request,
                                          const Caller& caller) {
  v1::DeleteSessionRequest remove;
  remove.set_session_id(request.matches[1].str());
  RETURN_IF_ERROR(sessions.Delete(remove, caller).status());
  std::string json = "{\"id\":";
  AppendJsonString(remove.session_id(), &json);
  return json + ",\"object\":\"session.deleted\",\"deleted\":true}\n";
}

absl::StatusOr<std::string> GetMessages(const SessionDirectory& sessions, const Request& request,
                                        const Caller& caller) {
  v1::GetSessionRequest get;
  get.set_session_id(request.matches[1].str());
  get.set_with_messages(true);
  ASSIGN_OR_RETURN(const v1::GetSessionResponse found, sessions.Get(get, caller));
  std::string json = "{\"object\":\"list\",\"data\":[";
  for (int i = 0; i < found.messages_size(); ++i) {
    if (i > 0) json += ',';
    AppendMessage(found.messages(i), &json);
  }
  return json + "]}\n";
}

absl::StatusOr<std::string> GetVersions(const SessionDirectory& sessions, const Request& request,
                                        const Caller& caller) {
  v1::DescribeSessionRequest describe;
  describe.set_session_id(request.matches[1].str());
  ASSIGN_OR_RETURN(const v1::DescribeSessionResponse found, sessions.Describe(describe, caller));
  std::string json;
  AppendDescription(found, &json);
  return json;
}

absl::StatusOr<std::string> ForkSession(const SessionDirectory& sessions, const Request& request,
                                        const Caller& caller) {
  ASSIGN_OR_RETURN(const Json json, ParseBody(request));
  JsonFields fields(json);
  v1::ForkSessionRequest fork;
  fork.set_session_id(request.matches[1].str());
  if (const auto version = fields.Integer("version", 0, kMaxJsonInteger)) {
    fork.set_version(static_cast<uint64_t>(*version));
  }
  fork.set_new_session_id(fields.String("new_session_id").value_or(""));
  fork.set_title(fields.String("title").value_or(""));
  fork.set_request_id(RequestIdOf(fields, request));
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(const v1::ForkSessionResponse made, sessions.Fork(fork, caller));
  return ToJson(made.session());
}

absl::StatusOr<std::string> RewindSession(const SessionDirectory& sessions, const Request& request,
                                          const Caller& caller) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(request.body));
  JsonFields fields(json);
  v1::RewindSessionRequest rewind;
  rewind.set_session_id(request.matches[1].str());
  const auto version = fields.Integer("version", 0, kMaxJsonInteger);
  if (!version) fields.Fail("version", "must be given: what to go back to");
  RETURN_IF_ERROR(fields.status());
  rewind.set_version(static_cast<uint64_t>(*version));
  ASSIGN_OR_RETURN(const v1::RewindSessionResponse rewound, sessions.Rewind(rewind, caller));
  return ToJson(rewound.session());
}

absl::StatusOr<std::string> CompactSession(const SessionDirectory& sessions, const Request& request,
                                           const Caller& caller) {
  ASSIGN_OR_RETURN(const Json json, ParseObject(request.body));
  JsonFields fields(json);
  v1::CompactSessionRequest compact;
  compact.set_session_id(request.matches[1].str());
  if (const auto version = fields.Integer("parent_version", 0, kMaxJsonInteger)) {
    compact.set_parent_version(static_cast<uint64_t>(*version));
  }
  if (fields.Has("memory_policy")) ReadMemoryPolicy(fields, compact.mutable_memory_policy());
  if (const auto encoding = fields.String("encoding")) {
    if (*encoding == "int8") {
      compact.set_encoding(v1::COMPACT_ENCODING_INT8);
    } else if (*encoding == "fp8") {
      compact.set_encoding(v1::COMPACT_ENCODING_FP8);
    } else {
      fields.Fail("encoding", "must be int8 or fp8");
    }
  }
  compact.set_drop_older_snapshots(fields.Bool("drop_older_snapshots").value_or(false));
  RETURN_IF_ERROR(fields.status());
  ASSIGN_OR_RETURN(const v1::CompactSessionResponse made, sessions.Compact(compact, caller));
  std::string reply = "{\"object\":\"session.compacted\",\"session\":";
  AppendSession(made.session(), &reply);
  absl::StrAppend(&reply, ",\"kv_bytes_before\":", made.kv_bytes_before(),
                  ",\"kv_bytes_after\":", made.kv_bytes_after(),
                  ",\"entries_before\":", made.entries_before(),
                  ",\"entries_after\":", made.entries_after(),
                  ",\"snapshots_dropped\":", made.snapshots_dropped(), "}\n");
  return reply;
}

absl::StatusOr<std::string> ForgetTenant(const SessionDirectory& sessions, const Request& request,
                                         const Caller& caller) {
  v1::ForgetTenantRequest forget;
  forget.set_tenant(request.matches[1].str());
  ASSIGN_OR_RETURN(const v1::ForgetTenantResponse forgotten, sessions.ForgetTenant(forget, caller));
  std::string json = "{\"id\":";
  AppendJsonString(forget.tenant(), &json);
  absl::StrAppend(&json, ",\"object\":\"tenant.deleted\",\"deleted\":true,\"sessions\":",
                  forgotten.sessions(), "}\n");
  return json;
}

void ExportSession(const SessionDirectory& sessions, const Request& request, Response& response,
                   const Exchange& exchange) {
  v1::ExportSessionRequest write;
  write.set_session_id(request.matches[1].str());
  write.set_without_snapshot(request.get_param_value("without_snapshot") == "true");
  absl::StatusOr<std::unique_ptr<SessionExport>> begun = sessions.Export(write, exchange->caller);
  if (!begun.ok()) return exchange->Fail(begun.status(), response);
  const std::shared_ptr<SessionExport> transfer = *std::move(begun);
  // Whatever is wrong with the session comes before its first piece, while there is a status line
  // to say it in.
  auto piece = std::make_shared<std::string>();
  const absl::StatusOr<bool> first = transfer->Next(piece.get());
  if (!first.ok()) return exchange->Fail(first.status(), response);
  response.status = 200;
  response.set_header("Content-Disposition",
                      absl::StrCat("attachment; filename=\"", write.session_id(), ".mneme\""));
  response.set_chunked_content_provider(
      "application/octet-stream",
      [transfer, piece, exchange, more = *first](size_t, httplib::DataSink& sink) {
        bool any = more;
        while (any) {
          if (!sink.write(piece->data(), piece->size()) || exchange->connection().Gone()) {
            exchange->code = 499;
            return false;
          }
          const absl::StatusOr<bool> next = transfer->Next(piece.get());
          if (!next.ok()) {
            // The reply breaks off without its end, which every client takes for an error.
            exchange->record.error = std::string(next.status().message());
            exchange->code = ToHttpError(next.status()).status;
            return false;
          }
          any = *next;
        }
        sink.done();
        return true;
      });
}

absl::StatusOr<std::string> ImportSession(const SessionDirectory& sessions, const Request& request,
                                          const httplib::ContentReader& reader,
                                          const Caller& caller) {
  v1::ImportSessionRequest::Header header;
  header.set_session_id(request.get_param_value("session_id"));
  absl::StatusOr<std::unique_ptr<SessionImport>> transfer = sessions.Import(header, caller);
  bool wanted = transfer.ok();
  const bool complete = reader([&](const char* data, size_t size) {
    // What is not wanted is read all the same, so that the client gets to read why.
    wanted = wanted && (*transfer)->Write(absl::string_view(data, size));
    return true;
  });
  RETURN_IF_ERROR(transfer.status());
  if (!complete && wanted) return absl::InvalidArgumentError("the file was cut on its way");
  const absl::StatusOr<v1::ImportSessionResponse> made = SessionDirectory::Finish(**transfer);
  // What is damaged here is what the client sent.
  if (absl::IsDataLoss(made.status())) {
    return status::WithPayload(absl::InvalidArgumentError(made.status().message()),
                               status::kReasonPayload, "DATA_LOSS");
  }
  RETURN_IF_ERROR(made.status());
  return ToJson(made->session());
}

void Reply(const absl::StatusOr<std::string>& json, Response& response, const Exchange& exchange) {
  if (!json.ok()) return exchange->Fail(json.status(), response);
  WriteJson(*json, response);
}

}  // namespace

void AppendMessage(const inference::v1::Message& message, std::string* out) {
  *out += "{\"role\":";
  AppendJsonString(message.role(), out);
  *out += ",\"content\":";
  AppendJsonString(message.content(), out);
  if (!message.name().empty()) {
    *out += ",\"name\":";
    AppendJsonString(message.name(), out);
  }
  if (!message.tool_call_id().empty()) {
    *out += ",\"tool_call_id\":";
    AppendJsonString(message.tool_call_id(), out);
  }
  // It was JSON when it came in.
  if (!message.tool_calls_json().empty()) {
    absl::StrAppend(out, ",\"tool_calls\":", message.tool_calls_json());
  }
  *out += '}';
}

void HttpSessions::Register(httplib::Server& server) {
  const auto route = [this](const char* name, auto core) {
    return edge_.Route(
        name, [this, core](const Request& request, Response& response, const Exchange& exchange) {
          Reply(core(sessions_, request, exchange->caller), response, exchange);
        });
  };
  server.Get("/v1/sessions", route("/v1/sessions", ListSessions));
  server.Post("/v1/sessions", route("/v1/sessions", CreateSession));
  server.Post(kImportPath, [this](const Request& request, Response& response,
                                  const httplib::ContentReader& reader) {
    const auto exchange = edge_.Begin(kImportPath, request, response);
    if (exchange == nullptr) {
      reader([](const char*, size_t) { return true; });
      return;
    }
    Reply(ImportSession(sessions_, request, reader, exchange->caller), response, exchange);
  });
  server.Get("/v1/sessions/([^/]+)", route("/v1/sessions/{id}", GetSession));
  server.Post("/v1/sessions/([^/]+)", route("/v1/sessions/{id}", UpdateSession));
  server.Patch("/v1/sessions/([^/]+)", route("/v1/sessions/{id}", UpdateSession));
  server.Delete("/v1/sessions/([^/]+)", route("/v1/sessions/{id}", DeleteSession));
  server.Get("/v1/sessions/([^/]+)/messages", route("/v1/sessions/{id}/messages", GetMessages));
  server.Get("/v1/sessions/([^/]+)/versions", route("/v1/sessions/{id}/versions", GetVersions));
  server.Post("/v1/sessions/([^/]+)/fork", route("/v1/sessions/{id}/fork", ForkSession));
  server.Post("/v1/sessions/([^/]+)/rewind", route("/v1/sessions/{id}/rewind", RewindSession));
  server.Post("/v1/sessions/([^/]+)/compact", route("/v1/sessions/{id}/compact", CompactSession));
  server.Get(
      "/v1/sessions/([^/]+)/export",
      edge_.Route("/v1/sessions/{id}/export",
                  [this](const Request& request, Response& response, const Exchange& exchange) {
                    ExportSession(sessions_, request, response, exchange);
                  }));
  server.Delete("/v1/tenants/([^/]+)", route("/v1/tenants/{id}", ForgetTenant));
}

}  // namespace mneme::gateway

#include "services/gateway/http_front.h"

#include <httplib.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "services/gateway/chat_page.h"
#include "services/gateway/http_listener.h"
#include "services/gateway/json_text.h"
#include "services/gateway/openai_request.h"

namespace mneme::gateway {
namespace {

constexpr char kJson[] = "application/json";

void WriteError(const HttpError& error, httplib::Response& response) {
  response.status = error.status;
  if (!error.retry_after.empty()) response.set_header("Retry-After", error.retry_after);
  if (error.status == 401) response.set_header("WWW-Authenticate", "Bearer");
  response.set_content(error.body, kJson);
}

void WriteJson(const std::string& json, httplib::Response& response) {
  response.status = 200;
  response.set_content(json, kJson);
}

void AppendModel(const v1::Model& model, std::string* out) {
  *out += "{\"id\":";
  AppendJsonString(model.name(), out);
  absl::StrAppend(out, ",\"object\":\"model\",\"created\":", model.created_unix_s(),
                  ",\"owned_by\":\"mneme\",\"max_model_len\":", model.context_length(),
                  ",\"mneme\":{\"architecture\":");
  AppendJsonString(model.architecture(), out);
  *out += ",\"weight_type\":";
  AppendJsonString(model.weight_type(), out);
  *out += ",\"compute_type\":";
  AppendJsonString(model.compute_type(), out);
  absl::StrAppend(out, ",\"vocab_size\":", model.vocab_size(),
                  ",\"num_parameters\":", model.num_parameters(),
                  ",\"executors\":", model.executors(), ",\"memory_policies\":[");
  for (int i = 0; i < model.memory_policies_size(); ++i) {
    if (i > 0) *out += ',';
    AppendJsonString(model.memory_policies(i), out);
  }
  *out += "]}}";
}

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
  *out += '}';
}

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

}  // namespace

class HttpFront::Exchange {
 public:
  Exchange(const char* route, AccessLog& log) : connection_(*HttpConnection::Current()), log_(log) {
    caller.arrived = connection_.arrived();
    caller.context = connection_.context();
    caller.gone = [connection = &connection_] { return connection->Gone(); };
    record.front = "http";
    record.route = route;
    record.arrived = caller.arrived;
    record.request_id = caller.context.request_id;
    record.traceparent = caller.context.traceparent;
  }
  ~Exchange() {
    record.code = absl::StrCat(code);
    log_.Write(record);
  }

  void Fail(const absl::Status& status, httplib::Response& response) {
    const HttpError error = ToHttpError(status);
    record.error = std::string(status.message());
    record.overload = absl::IsResourceExhausted(status);
    code = error.status;
    WriteError(error, response);
  }

  HttpConnection& connection() { return connection_; }

  Caller caller;
  AccessRecord record;
  int code = 200;

 private:
  HttpConnection& connection_;
  AccessLog& log_;
};

std::string HttpFront::RefusalJson() {
  return MakeHttpError(503, "the server is at its limit of open connections", "server_error",
                       "overloaded")
      .body;
}

void HttpFront::Handle(const char* route, const httplib::Request& request,
                       httplib::Response& response,
                       void (HttpFront::*handler)(const httplib::Request&, httplib::Response&,
                                                  const std::shared_ptr<Exchange>&)) {
  auto exchange = std::make_shared<Exchange>(route, log_);
  absl::StatusOr<Authenticator::Identity> identity =
      authenticator_.Identify(request.get_header_value("Authorization"));
  if (!identity.ok()) {
    core_.metrics().CountRejection("unauthenticated");
    exchange->Fail(identity.status(), response);
    return;
  }
  exchange->caller.tenant = std::move(identity->tenant);
  exchange->caller.limits = std::move(identity->limits);
  exchange->record.tenant = exchange->caller.tenant;
  (this->*handler)(request, response, exchange);
}

void HttpFront::Chat(const httplib::Request& request, httplib::Response& response,
                     const std::shared_ptr<Exchange>& exchange) {
  absl::StatusOr<OpenAiChat> chat = ParseChat(request.body);
  if (!chat.ok()) return exchange->Fail(chat.status(), response);
  if (chat->request.session_id().empty()) {
    chat->request.set_session_id(request.get_header_value("X-Mneme-Session"));
  }
  if (chat->request.request_id().empty()) {
    chat->request.set_request_id(request.get_header_value("Idempotency-Key"));
  }
  Reply(ReplyKind::kChat, chat->reply, core_.StartChat(chat->request, exchange->caller), response,
        exchange);
}

void HttpFront::Complete(const httplib::Request& request, httplib::Response& response,
                         const std::shared_ptr<Exchange>& exchange) {
  absl::StatusOr<OpenAiCompletion> completion = ParseCompletion(request.body);
  if (!completion.ok()) return exchange->Fail(completion.status(), response);
  Reply(ReplyKind::kCompletion, completion->reply,
        core_.StartCompletion(std::move(completion->request), exchange->caller), response,
        exchange);
}

void HttpFront::Reply(ReplyKind kind, const ReplyOptions& options,
                      absl::StatusOr<std::unique_ptr<Turn>> started, httplib::Response& response,
                      const std::shared_ptr<Exchange>& exchange) {
  if (!started.ok()) return exchange->Fail(started.status(), response);
  // Shared, since httplib copies what it is given.
  const auto turn = std::make_shared<std::unique_ptr<Turn>>(*std::move(started));
  const auto finish = [turn, exchange] {
    exchange->record.model = (*turn)->started().model;
    exchange->record.prompt_tokens = (*turn)->num_prompt_tokens();
    exchange->record.completion_tokens = (*turn)->num_completion_tokens();
    turn->reset();  // gives lease and place back before the client hears of the end
  };
  if (!options.stream) {
    OpenAiObject object(kind, options, exchange->caller.gone);
    const absl::Status status = (*turn)->Run(object);
    finish();
    if (!status.ok()) return exchange->Fail(status, response);
    WriteJson(object.body(), response);
    return;
  }
  response.status = 200;
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");
  response.set_chunked_content_provider(
      "text/event-stream",
      [kind, options, turn, exchange, finish](size_t, httplib::DataSink& sink) {
        OpenAiStream stream(kind, options, [&](const std::string& events) {
          if (events.empty()) return !exchange->connection().Gone();
          return sink.write(events.data(), events.size()) && !exchange->connection().Gone();
        });
        const absl::Status status = (*turn)->Run(stream);
        finish();
        if (absl::IsCancelled(status)) {
          exchange->code = 499;
          return false;
        }
        if (!status.ok()) {
          const HttpError error = ToHttpError(status);
          exchange->code = error.status;
          exchange->record.error = std::string(status.message());
          stream.Fail(error.body);
        }
        sink.done();
        return true;
      });
}

void HttpFront::ListModels(const httplib::Request&, httplib::Response& response,
                           const std::shared_ptr<Exchange>&) {
  std::string json = "{\"object\":\"list\",\"data\":[";
  bool first = true;
  for (const v1::Model& model : core_.executors().Models()) {
    if (!std::exchange(first, false)) json += ',';
    AppendModel(model, &json);
  }
  json += "]}\n";
  WriteJson(json, response);
}

void HttpFront::GetModel(const httplib::Request& request, httplib::Response& response,
                         const std::shared_ptr<Exchange>& exchange) {
  const absl::StatusOr<std::string> name = core_.executors().Resolve(request.matches[1].str());
  if (!name.ok()) return exchange->Fail(name.status(), response);
  for (const v1::Model& model : core_.executors().Models()) {
    if (model.name() != *name) continue;
    std::string json;
    AppendModel(model, &json);
    WriteJson(json + "\n", response);
  }
}

void HttpFront::Embeddings(const httplib::Request&, httplib::Response& response,
                           const std::shared_ptr<Exchange>& exchange) {
  // Not 501: clients would try that again.
  exchange->Fail(
      status::WithPayload(
          absl::NotFoundError("embeddings are not served here: the models are text generators"),
          status::kReasonPayload, "EMBEDDINGS_NOT_SERVED"),
      response);
}

void HttpFront::ListSessions(const httplib::Request& request, httplib::Response& response,
                             const std::shared_ptr<Exchange>& exchange) {
  v1::ListSessionsRequest list;
  if (request.has_param("limit")) {
    int32_t limit = 0;
    if (!absl::SimpleAtoi(request.get_param_value("limit"), &limit) || limit < 1 || limit > 1000) {
      return exchange->Fail(status::InvalidField("limit", "must lie between 1 and 1000"), response);
    }
    list.set_page_size(limit);
  }
  list.set_page_token(request.get_param_value("after"));
  list.set_model(request.get_param_value("model"));
  const absl::StatusOr<v1::ListSessionsResponse> found = sessions_.List(list, exchange->caller);
  if (!found.ok()) return exchange->Fail(found.status(), response);
  std::string json = "{\"object\":\"list\",\"data\":[";
  for (int i = 0; i < found->sessions_size(); ++i) {
    if (i > 0) json += ',';
    AppendSession(found->sessions(i), &json);
  }
  absl::StrAppend(&json, "],\"has_more\":", found->next_page_token().empty() ? "false" : "true",
                  ",\"next\":");
  AppendJsonString(found->next_page_token(), &json);
  WriteJson(json + "}\n", response);
}

void HttpFront::GetSession(const httplib::Request& request, httplib::Response& response,
                           const std::shared_ptr<Exchange>& exchange) {
  v1::GetSessionRequest get;
  get.set_session_id(request.matches[1].str());
  const absl::StatusOr<v1::GetSessionResponse> found = sessions_.Get(get, exchange->caller);
  if (!found.ok()) return exchange->Fail(found.status(), response);
  std::string json;
  AppendSession(found->session(), &json);
  WriteJson(json + "\n", response);
}

void HttpFront::GetMessages(const httplib::Request& request, httplib::Response& response,
                            const std::shared_ptr<Exchange>& exchange) {
  v1::GetSessionRequest get;
  get.set_session_id(request.matches[1].str());
  get.set_with_messages(true);
  const absl::StatusOr<v1::GetSessionResponse> found = sessions_.Get(get, exchange->caller);
  if (!found.ok()) return exchange->Fail(found.status(), response);
  std::string json = "{\"object\":\"list\",\"data\":[";
  for (int i = 0; i < found->messages_size(); ++i) {
    if (i > 0) json += ',';
    AppendMessage(found->messages(i), &json);
  }
  WriteJson(json + "]}\n", response);
}

void HttpFront::DeleteSession(const httplib::Request& request, httplib::Response& response,
                              const std::shared_ptr<Exchange>& exchange) {
  v1::DeleteSessionRequest remove;
  remove.set_session_id(request.matches[1].str());
  const absl::StatusOr<v1::DeleteSessionResponse> removed =
      sessions_.Delete(remove, exchange->caller);
  if (!removed.ok()) return exchange->Fail(removed.status(), response);
  std::string json = "{\"id\":";
  AppendJsonString(remove.session_id(), &json);
  WriteJson(json + ",\"object\":\"session.deleted\",\"deleted\":true}\n", response);
}

void HttpFront::Health(httplib::Response& response) {
  const int ready = core_.executors().NumReady();
  response.status = ready > 0 ? 200 : 503;
  response.set_content(absl::StrCat("{\"status\":\"", ready > 0 ? "ok" : "no executor is ready",
                                    "\",\"executors\":", ready, "}\n"),
                       kJson);
}

void HttpFront::Register(httplib::Server& server) {
  using Request = httplib::Request;
  using Response = httplib::Response;
  server.set_pre_routing_handler([](const Request& request, Response& response) {
    const HttpConnection* connection = HttpConnection::Current();
    response.set_header("x-request-id", connection->context().request_id);
    response.set_header("traceparent", connection->context().traceparent);
    // A small compressed body can hold gigabytes.
    if (request.has_header("Content-Encoding") &&
        request.get_header_value("Content-Encoding") != "identity") {
      response.set_header("Connection", "close");
      WriteError(MakeHttpError(415, "compressed request bodies are not accepted",
                               "invalid_request_error", "unsupported_encoding"),
                 response);
      return httplib::Server::HandlerResponse::Handled;
    }
    return httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_error_handler([this](const Request& request, Response& response) {
    if (!response.body.empty()) return;
    int code = response.status;
    if (code == 400 && HttpConnection::Current() != nullptr &&
        HttpConnection::Current()->body_too_large()) {
      code = 413;
    }
    std::string message = "the request is not valid HTTP";
    std::string name = "bad_request";
    if (code == 413) {
      message = "the request body is larger than this server accepts";
      name = "request_too_large";
    } else if (code == 404) {
      message = absl::StrCat("unknown route: ", request.method, " ", request.path.substr(0, 200));
      name = "unknown_url";
    } else if (code >= 500) {
      message = "internal error";
      name = "internal_error";
    }
    core_.metrics().CountRequest("other", absl::StrCat(code), 0);
    if (code == 413) core_.metrics().CountRejection("body_size");
    WriteError(
        MakeHttpError(code, message, code >= 500 ? "server_error" : "invalid_request_error", name),
        response);
  });
  const auto route = [this](const char* name, auto handler) {
    return [this, name, handler](const Request& request, Response& response) {
      Handle(name, request, response, handler);
    };
  };
  server.Post("/v1/chat/completions", route("/v1/chat/completions", &HttpFront::Chat));
  server.Post("/v1/completions", route("/v1/completions", &HttpFront::Complete));
  server.Post("/v1/embeddings", route("/v1/embeddings", &HttpFront::Embeddings));
  server.Get("/v1/models", route("/v1/models", &HttpFront::ListModels));
  server.Get("/v1/models/(.+)", route("/v1/models/{id}", &HttpFront::GetModel));
  server.Get("/v1/sessions", route("/v1/sessions", &HttpFront::ListSessions));
  server.Get("/v1/sessions/([^/]+)", route("/v1/sessions/{id}", &HttpFront::GetSession));
  server.Get("/v1/sessions/([^/]+)/messages",
             route("/v1/sessions/{id}/messages", &HttpFront::GetMessages));
  server.Delete("/v1/sessions/([^/]+)", route("/v1/sessions/{id}", &HttpFront::DeleteSession));
  server.Get("/healthz", [this](const Request&, Response& response) { Health(response); });
  server.Get("/", [](const Request&, Response& response) {
    response.set_header("Content-Security-Policy",
                        "default-src 'none'; script-src 'unsafe-inline'; style-src "
                        "'unsafe-inline'; connect-src 'self'; img-src data:");
    const absl::string_view page = ChatPage();
    response.set_content(page.data(), page.size(), "text/html; charset=utf-8");
  });
}

}  // namespace mneme::gateway

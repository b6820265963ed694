#include "services/gateway/http_front.h"

#include <httplib.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status/annotate.h"
#include "services/gateway/chat_page.h"
#include "services/gateway/http_answer.h"
#include "services/gateway/http_listener.h"
#include "services/gateway/json_text.h"
#include "services/gateway/model_queries.h"
#include "services/gateway/openai_request.h"

namespace mneme::gateway {
namespace {

constexpr char kJson[] = "application/json";

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

}  // namespace

std::string HttpFront::RefusalJson() {
  return MakeHttpError(503, "the server is at its limit of open connections", "server_error",
                       "overloaded")
      .body;
}

void HttpFront::Chat(const httplib::Request& request, httplib::Response& response,
                     const std::shared_ptr<HttpExchange>& exchange) {
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
                         const std::shared_ptr<HttpExchange>& exchange) {
  absl::StatusOr<OpenAiCompletion> completion = ParseCompletion(request.body);
  if (!completion.ok()) return exchange->Fail(completion.status(), response);
  Reply(ReplyKind::kCompletion, completion->reply,
        core_.StartCompletion(std::move(completion->request), exchange->caller), response,
        exchange);
}

void HttpFront::Reply(ReplyKind kind, const ReplyOptions& options,
                      absl::StatusOr<std::unique_ptr<AnswerSource>> started,
                      httplib::Response& response, const std::shared_ptr<HttpExchange>& exchange) {
  if (options.stream) {
    return StreamAnswer(std::move(started), response, exchange, [kind, options](HttpWrite write) {
      auto stream = std::make_unique<OpenAiStream>(kind, options, std::move(write));
      OpenAiStream* const raw = stream.get();
      return EventSink{std::move(stream), [raw](absl::string_view json) { raw->Fail(json); }};
    });
  }
  OpenAiObject object(kind, options, exchange->caller.gone);
  const absl::Status status = RunAnswer(std::move(started), object, *exchange);
  if (!status.ok()) return exchange->Fail(status, response);
  WriteJson(object.body(), response);
}

void HttpFront::Attach(const httplib::Request& request, httplib::Response& response,
                       const std::shared_ptr<HttpExchange>& exchange) {
  // What an event source sends by itself when it connects again.
  std::string after = request.get_header_value("Last-Event-ID");
  if (request.has_param("after")) after = request.get_param_value("after");
  uint64_t number = 0;
  if (!after.empty() && !absl::SimpleAtoi(after, &number)) {
    return exchange->Fail(status::InvalidField("after", "must be the number of an event"),
                          response);
  }
  ReplyOptions options;
  options.stream = true;
  options.logprobs = request.get_param_value("logprobs") == "true";
  options.include_usage = request.get_param_value("include_usage") == "true";
  Reply(ReplyKind::kChat, options, core_.Attach(request.matches[1].str(), number, exchange->caller),
        response, exchange);
}

void HttpFront::CancelAnswer(const httplib::Request& request, httplib::Response& response,
                             const std::shared_ptr<HttpExchange>& exchange) {
  const std::string id = request.matches[1].str();
  const absl::Status status = core_.Cancel(id, exchange->caller);
  if (!status.ok()) return exchange->Fail(status, response);
  std::string json = "{\"id\":";
  AppendJsonString(id, &json);
  WriteJson(json + ",\"object\":\"stream.cancelled\",\"cancelled\":true}\n", response);
}

void HttpFront::ListModels(const httplib::Request&, httplib::Response& response,
                           const std::shared_ptr<HttpExchange>&) {
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
                         const std::shared_ptr<HttpExchange>& exchange) {
  const absl::StatusOr<std::string> name = core_.executors().Resolve(request.matches[1].str());
  if (!name.ok()) return exchange->Fail(name.status(), response);
  for (const v1::Model& model : core_.executors().Models()) {
    if (model.name() != *name) continue;
    std::string json;
    AppendModel(model, &json);
    WriteJson(json + "\n", response);
  }
}

void HttpFront::TokenizeText(const httplib::Request& request, httplib::Response& response,
                             const std::shared_ptr<HttpExchange>& exchange) {
  v1::TokenizeRequest tokenize;
  const absl::Status parsed = ParseTokenize(request.body, &tokenize);
  if (!parsed.ok()) return exchange->Fail(parsed, response);
  const absl::StatusOr<v1::TokenizeResponse> tokenized =
      Tokenize(core_, tokenize, exchange->caller);
  if (!tokenized.ok()) return exchange->Fail(tokenized.status(), response);
  std::string json = "{\"model\":";
  AppendJsonString(tokenized->model(), &json);
  const auto described = core_.executors().Describe(tokenized->model());
  if (described.ok()) absl::StrAppend(&json, ",\"max_model_len\":", described->context_length());
  absl::StrAppend(&json, ",\"count\":", tokenized->token_ids_size(), ",\"tokens\":[",
                  absl::StrJoin(tokenized->token_ids(), ","), "]}\n");
  WriteJson(json, response);
}

void HttpFront::EstimateMemory(const httplib::Request& request, httplib::Response& response,
                               const std::shared_ptr<HttpExchange>& exchange) {
  v1::EstimateRequest estimate;
  const absl::Status parsed = ParseEstimate(request.body, &estimate);
  if (!parsed.ok()) return exchange->Fail(parsed, response);
  const absl::StatusOr<v1::EstimateResponse> estimated =
      Estimate(core_, estimate, exchange->caller);
  if (!estimated.ok()) return exchange->Fail(estimated.status(), response);
  const inference::v1::MemoryEstimate& found = estimated->estimate();
  std::string json = "{\"object\":\"memory_estimate\",\"model\":";
  AppendJsonString(estimated->model(), &json);
  json += ",\"policy\":";
  AppendJsonString(found.policy(), &json);
  absl::StrAppend(
      &json, ",\"tokens\":", estimate.tokens(), ",\"resident_pages\":", found.resident_pages(),
      ",\"resident_bytes\":", found.resident_bytes(), ",\"peak_pages\":", found.peak_pages(),
      ",\"peak_bytes\":", found.peak_bytes(), ",\"full_bytes\":", found.full_bytes(),
      ",\"max_tokens\":", found.max_tokens(), ",\"fits\":", found.fits() ? "true" : "false", "}\n");
  WriteJson(json, response);
}

void HttpFront::Embeddings(const httplib::Request&, httplib::Response& response,
                           const std::shared_ptr<HttpExchange>& exchange) {
  // Not 501: clients would try that again.
  exchange->Fail(
      status::WithPayload(
          absl::NotFoundError("embeddings are not served here: the models are text generators"),
          status::kReasonPayload, "EMBEDDINGS_NOT_SERVED"),
      response);
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
  const auto refuse_body = [this](Response& response) {
    core_.metrics().CountRequest("other", "413", 0);
    core_.metrics().CountRejection("body_size");
    WriteHttpError(MakeHttpError(413, "the request body is larger than this server accepts",
                                 "invalid_request_error", "request_too_large"),
                   response);
  };
  server.set_pre_routing_handler([refuse_body](const Request& request, Response& response) {
    HttpConnection* connection = HttpConnection::Current();
    response.set_header("x-request-id", connection->context().request_id);
    response.set_header("traceparent", connection->context().traceparent);
    // A small compressed body can hold gigabytes.
    if (request.has_header("Content-Encoding") &&
        request.get_header_value("Content-Encoding") != "identity") {
      response.set_header("Connection", "close");
      WriteHttpError(MakeHttpError(415, "compressed request bodies are not accepted",
                                   "invalid_request_error", "unsupported_encoding"),
                     response);
      return httplib::Server::HandlerResponse::Handled;
    }
    if (connection->body_too_large()) {
      connection->SkipBody();
      refuse_body(response);
      return httplib::Server::HandlerResponse::Handled;
    }
    return httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_error_handler([this, refuse_body](const Request& request, Response& response) {
    if (!response.body.empty()) return;
    const int code = response.status;
    // Only reading it has shown how large a body without a length is.
    if (code == 400 && HttpConnection::Current() != nullptr &&
        HttpConnection::Current()->body_too_large()) {
      return refuse_body(response);
    }
    std::string message = "the request is not valid HTTP";
    std::string name = "bad_request";
    if (code == 404) {
      message = absl::StrCat("unknown route: ", request.method, " ", request.path.substr(0, 200));
      name = "unknown_url";
    } else if (code >= 500) {
      message = "internal error";
      name = "internal_error";
    }
    core_.metrics().CountRequest("other", absl::StrCat(code), 0);
    WriteHttpError(
        MakeHttpError(code, message, code >= 500 ? "server_error" : "invalid_request_error", name),
        response);
  });
  const auto route = [this](const char* name, auto handler) {
    return edge_.Route(name, [this, handler](const Request& request, Response& response,
                                             const std::shared_ptr<HttpExchange>& exchange) {
      (this->*handler)(request, response, exchange);
    });
  };
  server.Post("/v1/chat/completions", route("/v1/chat/completions", &HttpFront::Chat));
  server.Post("/v1/completions", route("/v1/completions", &HttpFront::Complete));
  server.Get("/v1/streams/([^/]+)", route("/v1/streams/{id}", &HttpFront::Attach));
  server.Post("/v1/streams/([^/]+)/cancel",
              route("/v1/streams/{id}/cancel", &HttpFront::CancelAnswer));
  server.Post("/tokenize", route("/tokenize", &HttpFront::TokenizeText));
  server.Post("/v1/memory/estimate", route("/v1/memory/estimate", &HttpFront::EstimateMemory));
  server.Post("/v1/embeddings", route("/v1/embeddings", &HttpFront::Embeddings));
  server.Get("/v1/models", route("/v1/models", &HttpFront::ListModels));
  server.Get("/v1/models/(.+)", route("/v1/models/{id}", &HttpFront::GetModel));
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

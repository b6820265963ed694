#include "services/gateway/http_exchange.h"

#include <httplib.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"

namespace mneme::gateway {
namespace {

constexpr char kJson[] = "application/json";

}  // namespace

void WriteHttpError(const HttpError& error, httplib::Response& response) {
  response.status = error.status;
  if (!error.retry_after.empty()) response.set_header("Retry-After", error.retry_after);
  if (error.status == 401) response.set_header("WWW-Authenticate", "Bearer");
  response.set_content(error.body, kJson);
}

void WriteJson(const std::string& json, httplib::Response& response) {
  response.status = 200;
  response.set_content(json, kJson);
}

HttpExchange::HttpExchange(const char* route, AccessLog& log)
    : connection_(*HttpConnection::Current()), log_(log) {
  caller.arrived = connection_.arrived();
  caller.context = connection_.context();
  caller.gone = [connection = &connection_] { return connection->Gone(); };
  record.front = "http";
  record.route = route;
  record.arrived = caller.arrived;
  record.request_id = caller.context.request_id;
  record.traceparent = caller.context.traceparent;
}

HttpExchange::~HttpExchange() {
  record.code = absl::StrCat(code);
  log_.Write(record);
}

void HttpExchange::Fail(const absl::Status& status, httplib::Response& response) {
  const HttpError error = ToHttpError(status);
  record.error = std::string(status.message());
  record.overload = absl::IsResourceExhausted(status);
  code = error.status;
  if (const std::string version = status::PayloadOf(status, status::kVersionPayload);
      !version.empty()) {
    response.set_header("X-Mneme-Version", version);
  }
  WriteHttpError(error, response);
}

std::shared_ptr<HttpExchange> HttpEdge::Begin(const char* route, const httplib::Request& request,
                                              httplib::Response& response) const {
  auto exchange = std::make_shared<HttpExchange>(route, log_);
  absl::StatusOr<Authenticator::Identity> identity =
      authenticator_.Identify(request.get_header_value("Authorization"));
  if (!identity.ok()) {
    metrics_.CountRejection("unauthenticated");
    exchange->Fail(identity.status(), response);
    return nullptr;
  }
  exchange->caller.tenant = std::move(identity->tenant);
  exchange->caller.admin = identity->admin;
  exchange->caller.limits = std::move(identity->limits);
  exchange->record.tenant = exchange->caller.tenant;
  return exchange;
}

std::function<void(const httplib::Request&, httplib::Response&)> HttpEdge::Route(
    const char* route, Handler handler) const {
  return [this, route, handler = std::move(handler)](const httplib::Request& request,
                                                     httplib::Response& response) {
    if (const auto exchange = Begin(route, request, response)) handler(request, response, exchange);
  };
}

}  // namespace mneme::gateway

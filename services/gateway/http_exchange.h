// What every handler of the HTTP door begins and ends with: identity, request id, error bodies, the
// line in the access log.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "services/gateway/access_log.h"
#include "services/gateway/authenticator.h"
#include "services/gateway/caller.h"
#include "services/gateway/gateway_metrics.h"
#include "services/gateway/http_error.h"
#include "services/gateway/http_listener.h"

namespace httplib {
struct Request;
struct Response;
}  // namespace httplib

namespace mneme::gateway {

void WriteHttpError(const HttpError& error, httplib::Response& response);
void WriteJson(const std::string& json, httplib::Response& response);

// One request and its reply. Used by the thread that handles them; the access line is written when
// it is destroyed.
class HttpExchange {
 public:
  HttpExchange(const char* route, AccessLog& log);
  ~HttpExchange();

  void Fail(const absl::Status& status, httplib::Response& response);
  HttpConnection& connection() { return connection_; }

  Caller caller;
  AccessRecord record;
  int code = 200;

 private:
  HttpConnection& connection_;
  AccessLog& log_;
};

// Thread-safe.
class HttpEdge {
 public:
  using Handler = std::function<void(const httplib::Request&, httplib::Response&,
                                     const std::shared_ptr<HttpExchange>&)>;

  // All must outlive the edge and what it returns.
  HttpEdge(const Authenticator& authenticator, GatewayMetrics& metrics, AccessLog& log)
      : authenticator_(authenticator), metrics_(metrics), log_(log) {}

  // Returns a handler for the server: an exchange is made, and refused without a good key. `route`
  // is what logs and metrics call it.
  std::function<void(const httplib::Request&, httplib::Response&)> Route(const char* route,
                                                                         Handler handler) const;

  // The same for a handler that begins the exchange itself: returns null after a refusal.
  std::shared_ptr<HttpExchange> Begin(const char* route, const httplib::Request& request,
                                      httplib::Response& response) const;

 private:
  const Authenticator& authenticator_;
  GatewayMetrics& metrics_;
  AccessLog& log_;
};

}  // namespace mneme::gateway

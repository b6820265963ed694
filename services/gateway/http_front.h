// The HTTP door: OpenAI's routes, sessions, health and the chat page, on the same core as gRPC.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "services/gateway/access_log.h"
#include "services/gateway/authenticator.h"
#include "services/gateway/chat_core.h"
#include "services/gateway/http_error.h"
#include "services/gateway/openai_reply.h"
#include "services/gateway/session_directory.h"

namespace httplib {
struct Request;
struct Response;
class Server;
}  // namespace httplib

namespace mneme::gateway {

// Thread-safe.
class HttpFront {
 public:
  // All must outlive the front.
  HttpFront(ChatCore& core, const SessionDirectory& sessions, const Authenticator& authenticator,
            AccessLog& log)
      : core_(core), sessions_(sessions), authenticator_(authenticator), log_(log) {}

  // Adds the routes. The front must outlive the server.
  void Register(httplib::Server& server);

  // The body of a 503 for a connection that found no thread.
  static std::string RefusalJson();

 private:
  // What every handler begins and ends with; writes the access line when it is destroyed.
  class Exchange;

  void Handle(const char* route, const httplib::Request& request, httplib::Response& response,
              void (HttpFront::*handler)(const httplib::Request&, httplib::Response&,
                                         const std::shared_ptr<Exchange>&));
  void Chat(const httplib::Request& request, httplib::Response& response,
            const std::shared_ptr<Exchange>& exchange);
  void Complete(const httplib::Request& request, httplib::Response& response,
                const std::shared_ptr<Exchange>& exchange);
  void Reply(ReplyKind kind, const ReplyOptions& options,
             absl::StatusOr<std::unique_ptr<Turn>> turn, httplib::Response& response,
             const std::shared_ptr<Exchange>& exchange);
  void ListModels(const httplib::Request& request, httplib::Response& response,
                  const std::shared_ptr<Exchange>& exchange);
  void GetModel(const httplib::Request& request, httplib::Response& response,
                const std::shared_ptr<Exchange>& exchange);
  void Embeddings(const httplib::Request& request, httplib::Response& response,
                  const std::shared_ptr<Exchange>& exchange);
  void ListSessions(const httplib::Request& request, httplib::Response& response,
                    const std::shared_ptr<Exchange>& exchange);
  void GetSession(const httplib::Request& request, httplib::Response& response,
                  const std::shared_ptr<Exchange>& exchange);
  void GetMessages(const httplib::Request& request, httplib::Response& response,
                   const std::shared_ptr<Exchange>& exchange);
  void DeleteSession(const httplib::Request& request, httplib::Response& response,
                     const std::shared_ptr<Exchange>& exchange);
  void Health(httplib::Response& response);

  ChatCore& core_;
  const SessionDirectory& sessions_;
  const Authenticator& authenticator_;
  AccessLog& log_;
};

}  // namespace mneme::gateway

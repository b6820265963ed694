// The HTTP door: OpenAI's routes, health and the chat page, on the same core as gRPC.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "services/gateway/chat_core.h"
#include "services/gateway/http_exchange.h"
#include "services/gateway/openai_reply.h"

namespace httplib {
struct Request;
struct Response;
class Server;
}  // namespace httplib

namespace mneme::gateway {

// Thread-safe.
class HttpFront {
 public:
  // Both must outlive the front.
  HttpFront(ChatCore& core, const HttpEdge& edge) : core_(core), edge_(edge) {}

  // Adds the routes. The front must outlive the server.
  void Register(httplib::Server& server);

  // The body of a 503 for a connection that found no thread.
  static std::string RefusalJson();

 private:
  void Chat(const httplib::Request& request, httplib::Response& response,
            const std::shared_ptr<HttpExchange>& exchange);
  void Complete(const httplib::Request& request, httplib::Response& response,
                const std::shared_ptr<HttpExchange>& exchange);
  void Reply(ReplyKind kind, const ReplyOptions& options,
             absl::StatusOr<std::unique_ptr<AnswerSource>> started, httplib::Response& response,
             const std::shared_ptr<HttpExchange>& exchange);
  void Attach(const httplib::Request& request, httplib::Response& response,
              const std::shared_ptr<HttpExchange>& exchange);
  void CancelAnswer(const httplib::Request& request, httplib::Response& response,
                    const std::shared_ptr<HttpExchange>& exchange);
  void ListModels(const httplib::Request& request, httplib::Response& response,
                  const std::shared_ptr<HttpExchange>& exchange);
  void GetModel(const httplib::Request& request, httplib::Response& response,
                const std::shared_ptr<HttpExchange>& exchange);
  void TokenizeText(const httplib::Request& request, httplib::Response& response,
                    const std::shared_ptr<HttpExchange>& exchange);
  void EstimateMemory(const httplib::Request& request, httplib::Response& response,
                      const std::shared_ptr<HttpExchange>& exchange);
  void Embeddings(const httplib::Request& request, httplib::Response& response,
                  const std::shared_ptr<HttpExchange>& exchange);
  void Health(httplib::Response& response);

  ChatCore& core_;
  const HttpEdge& edge_;
};

}  // namespace mneme::gateway

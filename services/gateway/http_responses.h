// OpenAI's /v1/responses and /v1/conversations on sessions: a conversation is a session, a stored
// response is a committed turn of one.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "services/gateway/chat_core.h"
#include "services/gateway/http_exchange.h"
#include "services/gateway/response_id.h"
#include "services/gateway/responses_reply.h"
#include "services/gateway/responses_request.h"
#include "services/gateway/session_directory.h"

namespace httplib {
class Server;
}

namespace mneme::gateway {

// Thread-safe.
class HttpResponses {
 public:
  // All must outlive this object.
  HttpResponses(ChatCore& core, const SessionDirectory& sessions, const HttpEdge& edge)
      : core_(core), sessions_(sessions), edge_(edge) {}

  // Adds the routes. This object must outlive the server.
  void Register(httplib::Server& server);

 private:
  using Answer = absl::StatusOr<std::unique_ptr<AnswerSource>>;

  void Create(const httplib::Request& request, httplib::Response& response,
              const std::shared_ptr<HttpExchange>& exchange);
  // `key` is the client's name of the request, "" for none.
  Answer Start(const ResponsesRequest& request, const std::string& key, const Caller& caller);
  Answer Continue(const ResponseId& previous, const ResponsesRequest& request,
                  const std::string& key, const Caller& caller);
  // Answers from the stored turns and stores nothing.
  Answer StartUnstored(const ResponsesRequest& request, const Caller& caller);
  absl::StatusOr<SessionDirectory::CommittedTurn> Find(const std::string& id,
                                                       const Caller& caller) const;

  absl::StatusOr<std::string> Get(const httplib::Request& request, const Caller& caller) const;
  absl::StatusOr<std::string> GetInput(const httplib::Request& request, const Caller& caller) const;
  absl::StatusOr<std::string> Delete(const httplib::Request& request, const Caller& caller) const;

  absl::StatusOr<std::string> CreateConversation(const httplib::Request& request,
                                                 const Caller& caller);
  absl::StatusOr<std::string> GetConversation(const httplib::Request& request,
                                              const Caller& caller) const;
  absl::StatusOr<std::string> UpdateConversation(const httplib::Request& request,
                                                 const Caller& caller) const;
  absl::StatusOr<std::string> DeleteConversation(const httplib::Request& request,
                                                 const Caller& caller) const;
  absl::StatusOr<std::string> AddItems(const httplib::Request& request, const Caller& caller);
  absl::StatusOr<std::string> ListItems(const httplib::Request& request,
                                        const Caller& caller) const;
  absl::StatusOr<std::string> GetItem(const httplib::Request& request, const Caller& caller) const;

  ChatCore& core_;
  const SessionDirectory& sessions_;
  const HttpEdge& edge_;
};

}  // namespace mneme::gateway

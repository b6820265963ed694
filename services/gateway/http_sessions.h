// The HTTP door to sessions: /v1/sessions and what administrators may do.
#pragma once

#include <string>

#include "services/gateway/http_exchange.h"
#include "services/gateway/session_directory.h"

namespace httplib {
class Server;
}

namespace mneme::gateway {

// Appends a message as OpenAI shows them.
void AppendMessage(const inference::v1::Message& message, std::string* out);

// Thread-safe.
class HttpSessions {
 public:
  // Where a session's file is posted: the one route whose body may be large.
  static constexpr char kImportPath[] = "/v1/sessions/import";

  // Both must outlive this object.
  HttpSessions(const SessionDirectory& sessions, const HttpEdge& edge)
      : sessions_(sessions), edge_(edge) {}

  // Adds the routes. This object must outlive the server.
  void Register(httplib::Server& server);

 private:
  const SessionDirectory& sessions_;
  const HttpEdge& edge_;
};

}  // namespace mneme::gateway

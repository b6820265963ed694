// The HTTP server's sockets: httplib parses and routes, this owns what it leaves open. Connections
// are bounded and one too many is told so at once; a request that dribbles in and a client that
// stops reading are cut off; a handler can ask whether its client is still there; TLS.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/trace/request_context.h"

namespace httplib {
class Server;
}

namespace mneme::gateway {

struct HttpListenerOptions {
  std::string listen;           // host:port; port 0 takes a free one
  std::string tls_certificate;  // PEM path; "": no TLS
  std::string tls_key;          // PEM path
  int max_connections = 320;    // one thread each
  size_t max_body_bytes = 16 << 20;
  std::string large_body_path;  // the one path whose bodies may be larger; "": none
  int64_t max_large_body_bytes = 0;
  absl::Duration write_timeout = absl::Seconds(30);  // without any progress
  // For a request to arrive whole; with large_body_path, without any progress.
  absl::Duration request_timeout = absl::Seconds(30);
  absl::Duration idle_timeout = absl::Seconds(15);  // between two requests of a connection
  std::string refusal_json;                         // the 503 body for one connection too many
};

// The connection whose request the calling thread handles. Used by that thread only.
class HttpConnection {
 public:
  virtual ~HttpConnection() = default;

  // Returns the connection of the request being handled; null outside of handlers.
  static HttpConnection* Current();

  // Whether the client closed the connection, or nothing can be written to it.
  virtual bool Gone() const = 0;
  // Whether the request's body is, or was, larger than allowed.
  virtual bool body_too_large() const = 0;
  // Reads the body and drops it, so that its client gets to read the reply.
  virtual void SkipBody() = 0;

  const trace::RequestContext& context() const { return context_; }
  absl::Time arrived() const { return arrived_; }

 protected:
  trace::RequestContext context_;
  absl::Time arrived_;
};

// Thread-safe.
class HttpListener {
 public:
  // Binds the port. UNAVAILABLE: it is taken. INVALID_ARGUMENT: TLS files that do not fit.
  static absl::StatusOr<std::unique_ptr<HttpListener>> Bind(const HttpListenerOptions& options);
  ~HttpListener();

  // For registering handlers, before Start.
  httplib::Server& server();
  // host:port that the listener is bound to.
  const std::string& address() const { return address_; }

  void Start();
  // From now on every response closes its connection, idle connections are closed.
  void Drain();
  // Closes everything and waits for the handlers to return.
  void Stop();

 private:
  class Server;
  HttpListener(std::unique_ptr<Server> server, std::string address);

  std::unique_ptr<Server> server_;
  std::string address_;
};

}  // namespace mneme::gateway

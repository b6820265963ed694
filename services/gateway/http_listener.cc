#include "services/gateway/http_listener.h"

#include <httplib.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <functional>
#include <limits>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"
#include "common/sync/mutex.h"

namespace mneme::gateway {
namespace {

constexpr int kBacklog = 1024;
constexpr int kSendBufferBytes = 128 << 10;
constexpr size_t kReadBufferBytes = 16 << 10;
constexpr int64_t kHeaderBytes = 64 << 10;
// A body over the limit is read to its end, so that the client gets to read why it was refused; but
// not for ever.
constexpr int64_t kMaxSkippedBytes = int64_t{1} << 30;
constexpr int kPollSliceMs = 100;
constexpr size_t kMaxLingering = 256;
constexpr absl::Duration kLinger = absl::Milliseconds(500);
constexpr absl::Duration kLastWords = absl::Seconds(2);
constexpr size_t kMaxRequestsOfConnection = 10'000;

using SslPointer = std::unique_ptr<SSL, void (*)(SSL*)>;

thread_local HttpConnection* current_connection = nullptr;
// Set while the accepting thread runs a connection that no worker has room for.
thread_local bool refuse_connection = false;

// A client's socket as httplib's stream, with a deadline and a byte budget for each request.
class Connection final : public httplib::Stream, public HttpConnection {
 public:
  Connection(int fd, SslPointer ssl, const HttpListenerOptions& options)
      : fd_(fd), ssl_(std::move(ssl)), options_(options) {}

  // A request may begin to arrive.
  void BeginRequest() {
    read_deadline_ = absl::Now() + options_.request_timeout;
    budget_ = static_cast<int64_t>(options_.max_body_bytes) + kHeaderBytes;
    body_too_large_ = false;
    large_body_ = false;
    body_bytes_ = 0;
    arrived_ = absl::Now();
  }

  // Its header is there.
  void SetHeader(httplib::Request& request) {
    context_ = trace::ContextFrom(request.get_header_value("x-request-id"),
                                  request.get_header_value("traceparent"));
    large_body_ = !options_.large_body_path.empty() && request.path == options_.large_body_path;
    const int64_t limit =
        large_body_ ? options_.max_large_body_bytes : static_cast<int64_t>(options_.max_body_bytes);
    budget_ = limit + kHeaderBytes;
    if (absl::SimpleAtoi(request.get_header_value("Content-Length"), &body_bytes_) &&
        body_bytes_ > limit) {
      body_too_large_ = true;
      budget_ = std::min(body_bytes_, kMaxSkippedBytes) + kHeaderBytes;
    }
    // Every body is JSON or a session's file: httplib must not take it for a form and cut it at
    // 8 KiB.
    if (request.method == "POST" || request.method == "PATCH") {
      request.headers.erase("Content-Type");
    }
  }

  // Waits for the first byte of a next request.
  bool WaitForRequest(const std::function<bool()>& stop) {
    const absl::Time until = absl::Now() + options_.idle_timeout;
    while (!stop() && absl::Now() < until) {
      if (begin_ < end_ || (ssl_ != nullptr && SSL_pending(ssl_.get()) > 0)) return true;
      if (PollIn(kPollSliceMs)) return true;
    }
    return false;
  }

  bool broken() const { return broken_; }
  void CloseAfterwards() { broken_ = true; }

  bool Gone() const override {
    if (broken_) return true;
    pollfd poll_fd{fd_, POLLRDHUP, 0};
    return poll(&poll_fd, 1, 0) > 0 &&
           (poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
  }
  bool body_too_large() const override { return body_too_large_; }
  void SkipBody() override {
    char buffer[4096];
    for (int64_t left = body_bytes_; left > 0;) {
      const ssize_t count = read(buffer, std::min<int64_t>(left, sizeof(buffer)));
      if (count <= 0) {
        broken_ = true;
        return;
      }
      left -= count;
    }
  }

  bool is_readable() const override { return begin_ < end_ || PollIn(0); }
  bool is_writable() const override { return !Gone(); }

  ssize_t read(char* data, size_t size) override {
    if (begin_ == end_) {
      const ssize_t count = Fill();
      if (count <= 0) return count;
    }
    const size_t count = std::min(size, end_ - begin_);
    std::copy_n(buffer_.data() + begin_, count, data);
    begin_ += count;
    budget_ -= static_cast<int64_t>(count);
    if (budget_ < 0) {
      body_too_large_ = true;
      broken_ = true;  // what remains of the body is no next request
      return -1;
    }
    return static_cast<ssize_t>(count);
  }

  ssize_t write(const char* data, size_t size) override {
    size_t done = 0;
    while (done < size) {
      ssize_t count = 0;
      if (ssl_ != nullptr) {
        count = SSL_write(ssl_.get(), data + done, static_cast<int>(size - done));
      } else {
        count = send(fd_, data + done, size - done, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
      }
      // Nothing was taken within the write timeout, or the connection is gone.
      if (count <= 0) {
        broken_ = true;
        return -1;
      }
      done += count;
    }
    return static_cast<ssize_t>(size);
  }

  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    Name(getpeername, &ip, &port);
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    Name(getsockname, &ip, &port);
  }
  socket_t socket() const override { return fd_; }

 private:
  bool PollIn(int timeout_ms) const {
    pollfd poll_fd{fd_, POLLIN, 0};
    return poll(&poll_fd, 1, timeout_ms) > 0;
  }

  ssize_t Fill() {
    begin_ = end_ = 0;
    while (absl::Now() < read_deadline_) {
      if ((ssl_ == nullptr || SSL_pending(ssl_.get()) == 0) && !PollIn(kPollSliceMs)) continue;
      ssize_t count = 0;
      if (ssl_ != nullptr) {
        count = SSL_read(ssl_.get(), buffer_.data(), static_cast<int>(buffer_.size()));
        if (count <= 0 && SSL_get_error(ssl_.get(), static_cast<int>(count)) == SSL_ERROR_WANT_READ)
          continue;
      } else {
        count = recv(fd_, buffer_.data(), buffer_.size(), 0);
        if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      }
      if (count > 0) {
        end_ = static_cast<size_t>(count);
        if (large_body_) read_deadline_ = absl::Now() + options_.request_timeout;
      }
      return count;
    }
    broken_ = true;
    return -1;
  }

  void Name(int (*of)(int, sockaddr*, socklen_t*), std::string* ip, int* port) const {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    char host[NI_MAXHOST];
    char service[NI_MAXSERV];
    if (of(fd_, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof(host), service,
                    sizeof(service), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
      return;
    }
    *ip = host;
    if (!absl::SimpleAtoi(service, port)) *port = -1;
  }

  const int fd_;
  const SslPointer ssl_;
  const HttpListenerOptions& options_;
  std::vector<char> buffer_ = std::vector<char>(kReadBufferBytes);
  size_t begin_ = 0;
  size_t end_ = 0;
  int64_t budget_ = 0;
  absl::Time read_deadline_;
  bool broken_ = false;
  bool body_too_large_ = false;
  bool large_body_ = false;
  int64_t body_bytes_ = 0;  // as its header says
};

// Threads that come as connections do, up to a bound. What finds no thread runs at once on the
// calling one with refuse_connection set.
class Workers final : public httplib::TaskQueue {
 public:
  explicit Workers(size_t max_threads) : max_threads_(max_threads) {}

  void enqueue(std::function<void()> task) override {
    {
      sync::MutexLock lock(mutex_);
      const bool has_idle = idle_ > tasks_.size();
      if (has_idle || threads_.size() < max_threads_) {
        tasks_.push_back(std::move(task));
        if (has_idle) {
          changed_.NotifyOne();
        } else {
          threads_.emplace_back([this] { Work(); });
        }
        return;
      }
    }
    refuse_connection = true;
    task();
    refuse_connection = false;
  }

  void shutdown() override {
    {
      sync::MutexLock lock(mutex_);
      stopped_ = true;
      changed_.NotifyAll();
    }
    threads_.clear();
  }

 private:
  void Work() {
    while (true) {
      std::function<void()> task;
      {
        sync::MutexLock lock(mutex_);
        ++idle_;
        while (tasks_.empty() && !stopped_) changed_.Wait(mutex_);
        --idle_;
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

  const size_t max_threads_;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::jthread> threads_;  // grown by the accepting thread, joined after it has ended
};

// Sockets that have got their last words: closing one that still has bytes to read would reset the
// connection and take those words back, so they are read for a moment first.
class Lingering {
 public:
  Lingering() : thread_([this](std::stop_token stop) { Run(stop); }) {}
  ~Lingering() {
    thread_.request_stop();
    thread_.join();
    for (const Socket& socket : sockets_) close(socket.fd);
  }

  void Add(int fd) {
    shutdown(fd, SHUT_WR);
    sync::MutexLock lock(mutex_);
    if (sockets_.size() >= kMaxLingering) {
      close(sockets_.front().fd);
      sockets_.pop_front();
    }
    sockets_.push_back({fd, absl::Now() + kLinger});
  }

 private:
  struct Socket {
    int fd;
    absl::Time until;
  };

  // Reads what is there. Returns whether the socket may be closed.
  static bool IsDone(const Socket& socket) {
    char buffer[4096];
    while (true) {
      const ssize_t count = recv(socket.fd, buffer, sizeof(buffer), MSG_DONTWAIT);
      if (count > 0) continue;
      const bool waits = count < 0 && (errno == EAGAIN || errno == EINTR);
      return !waits || absl::Now() >= socket.until;
    }
  }

  void Run(std::stop_token stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      sync::MutexLock lock(mutex_);
      std::deque<Socket> left;
      for (const Socket& socket : sockets_) {
        if (IsDone(socket)) {
          close(socket.fd);
        } else {
          left.push_back(socket);
        }
      }
      sockets_.swap(left);
    }
  }

  sync::Mutex mutex_;
  std::deque<Socket> sockets_ ABSL_GUARDED_BY(mutex_);
  std::jthread thread_;
};

std::string RefusalOf(const std::string& json) {
  return absl::StrCat(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
      "Connection: close\r\nContent-Length: ",
      json.size(), "\r\n\r\n", json);
}

}  // namespace

HttpConnection* HttpConnection::Current() { return current_connection; }

class HttpListener::Server final : public httplib::Server {
 public:
  explicit Server(const HttpListenerOptions& options)
      : options_(options), refusal_(RefusalOf(options.refusal_json)) {
    // The library's default would share a port that another process has.
    set_socket_options([](socket_t socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    new_task_queue = [this] { return new Workers(options_.max_connections); };
    // The connection has the limits, which differ by path.
    set_payload_max_length(std::numeric_limits<size_t>::max());
    set_read_timeout(1);
    set_write_timeout(absl::ToChronoMilliseconds(options.write_timeout));
  }
  ~Server() override {
    if (ssl_ != nullptr) SSL_CTX_free(ssl_);
  }

  absl::Status LoadTls() {
    if (options_.tls_certificate.empty() && options_.tls_key.empty()) return absl::OkStatus();
    if (options_.tls_certificate.empty() || options_.tls_key.empty()) {
      return absl::InvalidArgumentError("TLS needs both tls_certificate and tls_key");
    }
    ssl_ = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_min_proto_version(ssl_, TLS1_2_VERSION);
    if (SSL_CTX_use_certificate_chain_file(ssl_, options_.tls_certificate.c_str()) != 1) {
      return TlsError("tls_certificate", options_.tls_certificate);
    }
    if (SSL_CTX_use_PrivateKey_file(ssl_, options_.tls_key.c_str(), SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(ssl_) != 1) {
      return TlsError("tls_key", options_.tls_key);
    }
    return absl::OkStatus();
  }

  bool BindTo(const std::string& host, int* port) {
    if (*port == 0) {
      *port = bind_to_any_port(host.c_str());
    } else if (!bind_to_port(host.c_str(), *port)) {
      *port = -1;
    }
    if (*port < 0) return false;
    // The library asks for a queue of 5, which a burst of clients overflows.
    ::listen(svr_sock_, kBacklog);
    return true;
  }

  void Start() {
    thread_ = std::jthread([this] { listen_after_bind(); });
  }

  void Drain() { draining_ = true; }

  void StopAll() {
    draining_ = true;
    if (!thread_.joinable()) return;
    // stop() before listen_after_bind() has begun would be lost.
    while (!is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    // Last words are still being written; idle connections see draining_ by themselves.
    const absl::Time until = absl::Now() + kLastWords;
    while (NumOpen() > 0 && absl::Now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    {
      sync::MutexLock lock(mutex_);
      for (const int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    stop();
    thread_.join();
  }

 private:
  static absl::Status TlsError(const char* field, const std::string& path) {
    char reason[256];
    ERR_error_string_n(ERR_get_error(), reason, sizeof(reason));
    return absl::InvalidArgumentError(absl::StrCat(field, " cannot be used: ", path, ": ", reason));
  }

  bool process_and_close_socket(socket_t fd) override {
    const int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    // A client that reads slowly may hold this much of the kernel's memory and no more.
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof(kSendBufferBytes));
    if (refuse_connection) {
      // A TLS client could not read it.
      if (ssl_ == nullptr) {
        send(fd, refusal_.data(), refusal_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      }
      lingering_.Add(fd);
      return true;
    }
    {
      sync::MutexLock lock(mutex_);
      open_.insert(fd);
    }
    Serve(fd);
    {
      sync::MutexLock lock(mutex_);
      open_.erase(fd);
    }
    lingering_.Add(fd);
    return true;
  }

  void Serve(int fd) {
    SslPointer ssl(nullptr, SSL_free);
    if (ssl_ != nullptr) {
      ssl.reset(SSL_new(ssl_));
      SSL_set_fd(ssl.get(), fd);
      const absl::Time until = absl::Now() + options_.request_timeout;
      int result = 0;
      while ((result = SSL_accept(ssl.get())) != 1) {
        const bool waits = SSL_get_error(ssl.get(), result) == SSL_ERROR_WANT_READ;
        if (!waits || draining_ || absl::Now() > until) return;
      }
    }
    Connection connection(fd, std::move(ssl), options_);
    for (size_t i = 0; i < kMaxRequestsOfConnection && !connection.broken(); ++i) {
      if (!connection.WaitForRequest([this] { return draining_.load(); })) return;
      connection.BeginRequest();
      bool closed = false;
      const bool close_afterwards = draining_ || i + 1 == kMaxRequestsOfConnection || IsCrowded();
      current_connection = &connection;
      const bool ok =
          process_request(connection, close_afterwards, closed,
                          [&](httplib::Request& request) { connection.SetHeader(request); });
      current_connection = nullptr;
      if (!ok || closed || close_afterwards) return;
    }
  }

  // Whether connections are short, so that none should be kept for a client's next request.
  bool IsCrowded() { return NumOpen() * 4 > static_cast<size_t>(options_.max_connections) * 3; }

  size_t NumOpen() {
    sync::MutexLock lock(mutex_);
    return open_.size();
  }

  const HttpListenerOptions options_;
  const std::string refusal_;
  SSL_CTX* ssl_ = nullptr;
  std::atomic<bool> draining_{false};
  sync::Mutex mutex_;
  std::set<int> open_ ABSL_GUARDED_BY(mutex_);
  Lingering lingering_;
  std::jthread thread_;
};

absl::StatusOr<std::unique_ptr<HttpListener>> HttpListener::Bind(
    const HttpListenerOptions& options) {
  const size_t colon = options.listen.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(options.listen.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("http_listen is not host:port: ", options.listen));
  }
  std::string host = options.listen.substr(0, colon);
  const std::string shown_host = host;
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  auto server = std::make_unique<Server>(options);
  RETURN_IF_ERROR(server->LoadTls());
  if (!server->BindTo(host, &port)) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen,
                                               ": is the port taken by another process?"));
  }
  return std::unique_ptr<HttpListener>(
      new HttpListener(std::move(server), absl::StrCat(shown_host, ":", port)));
}

HttpListener::HttpListener(std::unique_ptr<Server> server, std::string address)
    : server_(std::move(server)), address_(std::move(address)) {}

HttpListener::~HttpListener() { Stop(); }

httplib::Server& HttpListener::server() { return *server_; }
void HttpListener::Start() { server_->Start(); }
void HttpListener::Drain() { server_->Drain(); }
void HttpListener::Stop() { server_->StopAll(); }

}  // namespace mneme::gateway

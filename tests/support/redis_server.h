// A real redis-server for tests: on a free port of 127.0.0.1, in a temporary folder, with its
// append-only file on. It can be killed, stopped still and started again on the same port and data.
//
//   ASSERT_OK_AND_ASSIGN(auto redis, RedisServer::Start({.append_fsync = "always"}));
//   redis->Kill();               // kill -9
//   ... what callers see ...
//   ASSERT_TRUE(redis->Restart().ok());
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {

// PEM files; see CertificateAuthority.
struct RedisTls {
  std::string ca_file;  // of clients' certificates
  std::string certificate;
  std::string key;
  bool wants_client_certificate = false;
};

struct RedisServerOptions {
  std::string append_fsync = "everysec";  // always, everysec, no
  std::string password;                   // of the default user; "": none
  std::optional<RedisTls> tls;            // TLS only: there is no plain port
  std::vector<std::string> config_lines;  // more lines of redis.conf
  bool is_sentinel = false;               // a Sentinel: of the above, config_lines only
};

// Not thread-safe. The kernel kills the server when the thread that started it ends, however that
// happens, so that no test run leaves one behind: start it from a thread that outlives its use.
class RedisServer {
 public:
  // Returns once the server answers.
  static absl::StatusOr<std::unique_ptr<RedisServer>> Start(const RedisServerOptions& options = {});
  ~RedisServer();
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  // "127.0.0.1:port"; the same for the whole life of the object.
  const std::string& address() const { return address_; }
  int port() const { return port_; }
  // Where it keeps its data and log.
  const std::string& folder() const { return folder_.path(); }

  // Returns what it answers to a command in one line, as it came ("+OK\r\n"); "" if it does not
  // within a second. Not with TLS or a password.
  std::string Ask(absl::string_view line) const;

  // Ends the server as an operator would (SIGTERM) and waits for it.
  void Stop();
  // Ends it at once (SIGKILL).
  void Kill();
  // Stops it still (SIGSTOP): connections stay open and nothing is answered.
  void Pause();
  void Resume();
  // Starts it again on the same port and data, and returns once it has loaded them.
  absl::Status Restart();

 private:
  RedisServer() = default;
  absl::Status Launch();
  absl::Status WaitUntilLoaded();
  bool HasLoaded() const;
  void End(int signal);

  TempFolder folder_;
  std::string address_;
  int port_ = 0;
  pid_t pid_ = -1;
  bool has_tls_ = false;
  bool is_sentinel_ = false;
};

}  // namespace mneme::testing

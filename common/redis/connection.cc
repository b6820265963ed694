#include "common/redis/connection.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/redis/encoding.h"
#include "common/redis/socket.h"
#include "common/redis/tls_socket.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

absl::Status Unreachable(const absl::Status& status, const std::string& address) {
  if (status.code() != absl::StatusCode::kUnavailable &&
      status.code() != absl::StatusCode::kDeadlineExceeded) {
    return absl::Status(status.code(), absl::StrCat(status.message(), ": ", address));
  }
  return absl::Status(status.code(),
                      absl::StrCat("Redis cannot be reached, start it or correct redis.address: ",
                                   address, ": ", status.message()));
}

absl::StatusOr<std::unique_ptr<Transport>> OpenTransport(const Options& options,
                                                         absl::Time deadline) {
  ASSIGN_OR_RETURN(Socket socket, Socket::Connect(options.address, deadline));
  if (!options.tls.enabled) return std::make_unique<Socket>(std::move(socket));
  ASSIGN_OR_RETURN(const HostPort parts, SplitAddress(options.address));
  absl::StatusOr<std::unique_ptr<TlsSocket>> encrypted =
      TlsSocket::Connect(std::move(socket), options.tls, parts.host, deadline);
  if (!absl::IsDeadlineExceeded(encrypted.status())) return encrypted;
  return absl::DeadlineExceededError(
      "no answer to the TLS handshake: if TLS is not what it speaks there, leave redis.tls out or "
      "give Redis' tls-port");
}

bool IsReplica(const Reply& role) {
  return !role.elements().empty() && role.elements()[0].text() != "master";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const Options& options, Role role,
                                                             absl::Time deadline) {
  absl::StatusOr<std::unique_ptr<Transport>> transport = OpenTransport(options, deadline);
  if (!transport.ok()) return Unreachable(transport.status(), options.address);
  std::unique_ptr<Connection> connection(new Connection(*std::move(transport), options.address));
  RETURN_IF_ERROR(connection->LogIn(options, role, deadline));
  return connection;
}

Connection::Connection(std::unique_ptr<Transport> transport, const std::string& address)
    : address_(address), transport_(std::move(transport)), reader_(*transport_, address) {}

absl::Status Connection::LogIn(const Options& options, Role role, absl::Time deadline) {
  std::vector<Command> commands;
  if (!options.username.empty()) {
    commands.push_back({"AUTH", options.username, options.password});
  } else if (!options.password.empty()) {
    commands.push_back({"AUTH", options.password});
  }
  if (options.database != 0) commands.push_back({"SELECT", absl::StrCat(options.database)});
  if (role == Role::kMaster) commands.push_back({"ROLE"});
  commands.push_back({"PING"});
  absl::StatusOr<std::vector<Reply>> replies = Run(commands, deadline);
  if (!replies.ok()) {
    absl::Status status = replies.status();
    if (absl::IsUnavailable(status) && !options.tls.enabled) {
      status = absl::UnavailableError(
          absl::StrCat(status.message(), " (if it speaks TLS only, set redis.tls)"));
    }
    return Unreachable(status, address_);
  }
  for (size_t i = 0; i < replies->size(); ++i) {
    const Reply& reply = (*replies)[i];
    const absl::string_view name = commands[i][0].bytes();
    // A user without the right to ask is logged in all the same.
    const bool is_question = name == "PING" || name == "ROLE";
    if (is_question && absl::StartsWith(reply.text(), "NOPERM ")) continue;
    RETURN_IF_ERROR(reply.status());
    if (name == "ROLE" && IsReplica(reply)) {
      return absl::UnavailableError(absl::StrCat("this Redis is a replica: ", address_));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Reply>> Connection::Run(absl::Span<const Command> commands,
                                                   absl::Time deadline) {
  RETURN_IF_ERROR(Send(commands, deadline));
  return Receive(commands.size(), deadline);
}

absl::Status Connection::Send(absl::Span<const Command> commands, absl::Time deadline) {
  const Encoding encoding(commands);
  return transport_->Write(encoding.pieces(), deadline);
}

absl::StatusOr<std::vector<Reply>> Connection::Receive(size_t num_replies, absl::Time deadline) {
  std::vector<Reply> replies;
  replies.reserve(num_replies);
  while (replies.size() < num_replies) {
    ASSIGN_OR_RETURN(Reply reply, reader_.Read(deadline));
    replies.push_back(std::move(reply));
  }
  return replies;
}

}  // namespace mneme::redis

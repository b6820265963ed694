#include "common/redis/connection.h"

#include <hiredis/hiredis.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

constexpr size_t kReadBytes = 64 << 10;

struct ReplyDeleter {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};

std::string Encode(const std::vector<Command>& commands) {
  std::string bytes;
  for (const Command& command : commands) {
    absl::StrAppend(&bytes, "*", command.size(), "\r\n");
    for (const std::string& argument : command) {
      absl::StrAppend(&bytes, "$", argument.size(), "\r\n", argument, "\r\n");
    }
  }
  return bytes;
}

absl::Status Unreachable(const absl::Status& status, const std::string& address) {
  if (status.code() != absl::StatusCode::kUnavailable &&
      status.code() != absl::StatusCode::kDeadlineExceeded) {
    return absl::Status(status.code(), absl::StrCat(status.message(), ": ", address));
  }
  return absl::Status(status.code(),
                      absl::StrCat("Redis cannot be reached, start it or correct redis.address: ",
                                   address, ": ", status.message()));
}

}  // namespace

void Connection::ReaderDeleter::operator()(redisReader* reader) const { redisReaderFree(reader); }

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const Options& options,
                                                             absl::Time deadline) {
  absl::StatusOr<Socket> socket = Socket::Connect(options.address, deadline);
  if (!socket.ok()) return Unreachable(socket.status(), options.address);
  std::unique_ptr<Connection> connection(new Connection(*std::move(socket), options.address));
  RETURN_IF_ERROR(connection->LogIn(options, deadline));
  return connection;
}

Connection::Connection(Socket socket, std::string address)
    : socket_(std::move(socket)), address_(std::move(address)), reader_(redisReaderCreate()) {}

Connection::~Connection() = default;

absl::Status Connection::LogIn(const Options& options, absl::Time deadline) {
  std::vector<Command> commands;
  if (!options.username.empty()) {
    commands.push_back({"AUTH", options.username, options.password});
  } else if (!options.password.empty()) {
    commands.push_back({"AUTH", options.password});
  }
  if (options.database != 0) commands.push_back({"SELECT", absl::StrCat(options.database)});
  commands.push_back({"PING"});
  absl::StatusOr<std::vector<Reply>> replies = Run(commands, deadline);
  if (!replies.ok()) return Unreachable(replies.status(), address_);
  for (const Reply& reply : *replies) {
    // A user without the right to PING is logged in all the same.
    if (&reply == &replies->back() && absl::StartsWith(reply.text(), "NOPERM ")) break;
    RETURN_IF_ERROR(reply.status());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Reply>> Connection::Run(const std::vector<Command>& commands,
                                                   absl::Time deadline) {
  RETURN_IF_ERROR(socket_.Write(Encode(commands), deadline));
  std::vector<Reply> replies;
  replies.reserve(commands.size());
  while (replies.size() < commands.size()) {
    ASSIGN_OR_RETURN(Reply reply, ReadReply(deadline));
    replies.push_back(std::move(reply));
  }
  return replies;
}

absl::StatusOr<Reply> Connection::ReadReply(absl::Time deadline) {
  char buffer[kReadBytes];
  while (true) {
    void* parsed = nullptr;
    if (redisReaderGetReply(reader_.get(), &parsed) != REDIS_OK) {
      return absl::UnavailableError(
          absl::StrCat("what answers is no Redis server: ", absl::string_view(reader_->errstr)));
    }
    if (parsed != nullptr) {
      const std::unique_ptr<redisReply, ReplyDeleter> reply(static_cast<redisReply*>(parsed));
      return Reply(*reply, address_);
    }
    ASSIGN_OR_RETURN(const size_t count, socket_.Read(buffer, sizeof(buffer), deadline));
    redisReaderFeed(reader_.get(), buffer, count);
  }
}

}  // namespace mneme::redis

#include "common/redis/reply.h"

#include <hiredis/hiredis.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace mneme::redis {
namespace {

struct KnownError {
  absl::string_view prefix;
  absl::StatusCode code;
  absl::string_view explanation;
};

constexpr absl::StatusCode kUnavailable = absl::StatusCode::kUnavailable;
constexpr absl::StatusCode kFailedPrecondition = absl::StatusCode::kFailedPrecondition;

// By the words that Redis' protocol promises; more exact prefixes stand first.
constexpr KnownError kKnownErrors[] = {
    {"OOM ", absl::StatusCode::kResourceExhausted,
     "Redis has used up its maxmemory: raise it or delete sessions"},
    {"LOADING ", kUnavailable, "Redis is still loading its data: try again"},
    {"READONLY ", kUnavailable,
     "this Redis is a read-only replica: point redis.address at the master"},
    {"MASTERDOWN ", kUnavailable, "this Redis replica has lost its master"},
    {"NOREPLICAS ", kUnavailable, "Redis has too few replicas to accept writes"},
    {"CLUSTERDOWN ", kUnavailable, "the Redis cluster is down"},
    {"TRYAGAIN ", kUnavailable, "Redis is moving these keys: try again"},
    {"BUSY ", kUnavailable, "Redis is busy with a long script"},
    {"MISCONF ", kUnavailable,
     "Redis cannot write to its disk and refuses writes: free disk space"},
    {"MOVED ", kFailedPrecondition,
     "redis.address is a node of a Redis Cluster: give a single server"},
    {"WRONGPASS ", kFailedPrecondition,
     "Redis refused the login: check redis.username and redis.password_file"},
    {"NOAUTH ", kFailedPrecondition, "Redis wants a password: set redis.password_file"},
    {"ERR AUTH ", kFailedPrecondition,
     "Redis has no password and one was sent: leave redis.password_file empty"},
    {"ERR invalid password", kFailedPrecondition,
     "Redis refused the login: check redis.password_file"},
    {"NOPERM ", kFailedPrecondition,
     "the Redis user may not do this: check the ACL of redis.username"},
    {"ERR DB index", kFailedPrecondition, "Redis has no such database: check redis.database"},
};

}  // namespace

absl::Status StatusOfError(absl::string_view error, absl::string_view address) {
  for (const KnownError& known : kKnownErrors) {
    if (absl::StartsWith(error, known.prefix)) {
      return absl::Status(known.code, absl::StrCat(known.explanation, ": ", address));
    }
  }
  // Some of Redis' messages quote arguments, which may be what users wrote.
  const absl::string_view without_arguments = error.substr(0, error.find(", with args"));
  return absl::InternalError(
      absl::StrCat("Redis refused a command: ", without_arguments, ": ", address));
}

Reply::Reply(const redisReply& reply, absl::string_view address) {
  switch (reply.type) {
    case REDIS_REPLY_INTEGER:
      kind_ = Kind::kInteger;
      integer_ = reply.integer;
      break;
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
      kind_ = Kind::kString;
      text_.assign(reply.str, reply.len);
      break;
    case REDIS_REPLY_ERROR:
      kind_ = Kind::kError;
      text_.assign(reply.str, reply.len);
      status_ = StatusOfError(text_, address);
      break;
    case REDIS_REPLY_ARRAY:
      kind_ = Kind::kArray;
      elements_.reserve(reply.elements);
      for (size_t i = 0; i < reply.elements; ++i) {
        elements_.emplace_back(*reply.element[i], address);
      }
      break;
    default:
      break;
  }
}

absl::StatusOr<int64_t> Reply::Integer() const {
  int64_t value = integer_;
  if (kind_ == Kind::kInteger || (kind_ == Kind::kString && absl::SimpleAtoi(text_, &value))) {
    return value;
  }
  return absl::InternalError("Redis answered something else where a number was due");
}

absl::StatusOr<std::string> Reply::String() const {
  if (kind_ == Kind::kString) return text_;
  return absl::InternalError("Redis answered something else where a string was due");
}

}  // namespace mneme::redis

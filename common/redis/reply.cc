#include "common/redis/reply.h"

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
     "this Redis is a read-only replica: point redis.address at the master, or let Sentinels find "
     "it: redis.mode"},
    {"MASTERDOWN ", kUnavailable, "this Redis replica has lost its master"},
    {"NOREPLICAS ", kUnavailable, "Redis has too few replicas to accept writes"},
    {"CLUSTERDOWN ", kUnavailable, "the Redis cluster is down"},
    {"TRYAGAIN ", kUnavailable, "Redis is moving these keys: try again"},
    {"BUSY ", kUnavailable, "Redis is busy with a long script"},
    {"MISCONF ", kUnavailable,
     "Redis cannot write to its disk and refuses writes: free disk space"},
    {"MOVED ", kFailedPrecondition,
     "redis.address is a node of a Redis Cluster: set redis.mode to REDIS_MODE_CLUSTER"},
    {"ASK ", kFailedPrecondition,
     "redis.address is a node of a Redis Cluster: set redis.mode to REDIS_MODE_CLUSTER"},
    {"CROSSSLOT ", absl::StatusCode::kInvalidArgument,
     "the keys of a command are in different hash slots"},
    {"ERR This instance has cluster support disabled", kFailedPrecondition,
     "this Redis is no node of a Redis Cluster: leave redis.mode out"},
    {"ERR SELECT is not allowed in cluster mode", kFailedPrecondition,
     "a Redis Cluster has one database: leave redis.database out"},
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

Reply Reply::OfInteger(int64_t value) {
  Reply reply;
  reply.kind_ = Kind::kInteger;
  reply.integer_ = value;
  return reply;
}

Reply Reply::OfString(std::string bytes) {
  Reply reply;
  reply.kind_ = Kind::kString;
  reply.text_ = std::move(bytes);
  return reply;
}

Reply Reply::OfArray(std::vector<Reply> elements) {
  Reply reply;
  reply.kind_ = Kind::kArray;
  reply.elements_ = std::move(elements);
  return reply;
}

Reply Reply::OfError(std::string text, absl::string_view address) {
  Reply reply;
  reply.kind_ = Kind::kError;
  reply.status_ = StatusOfError(text, address);
  reply.text_ = std::move(text);
  return reply;
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

#include "common/redis/node.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

constexpr absl::Duration kFirstBackOff = absl::Milliseconds(50);
constexpr absl::Duration kLongestBackOff = absl::Seconds(1);
// What a call waits for the next try on a server that refused the last.
constexpr absl::Duration kPatience = absl::Milliseconds(100);
// A server that says no within this time refuses.
constexpr absl::Duration kRefusalTime = absl::Milliseconds(20);

absl::Duration BackOff(int num_failures, bool is_refusing) {
  if (is_refusing) return kFirstBackOff;
  return std::min(kFirstBackOff * (1 << std::min(num_failures - 1, 10)), kLongestBackOff);
}

bool IsTimeout(const absl::Status& status) {
  return status.code() == absl::StatusCode::kDeadlineExceeded;
}

}  // namespace

absl::StatusOr<std::vector<Reply>> Node::Run(absl::Span<const Command> commands,
                                             absl::Time deadline, Ack ack) {
  ASSIGN_OR_RETURN(Exchange exchange, Begin(deadline));
  RETURN_IF_ERROR(exchange.Send(commands, ack));
  return exchange.Receive();
}

absl::StatusOr<Node::Exchange> Node::Begin(absl::Time deadline) {
  const absl::Time own_limit = absl::Now() + options_.command_timeout;
  const absl::Time limit = std::min(deadline, own_limit);
  const bool limit_is_callers = deadline < own_limit;
  ASSIGN_OR_RETURN(ConnectionPtr connection, Take(limit, limit_is_callers));
  return Exchange(*this, std::move(connection), limit, limit_is_callers);
}

Node::Exchange::~Exchange() {
  if (connection_ == nullptr) return;
  if (num_sent_ == 0) {
    node_->GiveBack(std::move(connection_));
  } else {
    node_->Drop(absl::OkStatus(), /*server_is_down=*/false, /*is_probe=*/false);
  }
}

absl::Status Node::Exchange::Send(absl::Span<const Command> commands, Ack ack) {
  start_ = absl::Now();
  num_sent_ = commands.size();
  absl::Status status = connection_->Send(commands, limit_);
  waits_for_replicas_ = ack == Ack::kReplicas && node_->options_.wait_for_replicas > 0;
  if (status.ok() && waits_for_replicas_) {
    const Command wait = Wait();
    ++num_sent_;
    status = connection_->Send(absl::MakeConstSpan(&wait, 1), limit_);
  }
  return status.ok() ? status : Fail(status);
}

Command Node::Exchange::Wait() const {
  // Half of what is left, so that its answer still comes in time. 0 would be for ever.
  const absl::Duration time = std::min(node_->options_.replica_timeout, (limit_ - absl::Now()) / 2);
  return {"WAIT", absl::StrCat(node_->options_.wait_for_replicas),
          absl::StrCat(std::max<int64_t>(absl::ToInt64Milliseconds(time), 1))};
}

absl::Status Node::Exchange::CheckReplicas(const Reply& waited,
                                           absl::Span<const Reply> replies) const {
  // What was refused needs no replica.
  if (std::none_of(replies.begin(), replies.end(),
                   [](const Reply& reply) { return reply.status().ok(); })) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(waited.status());
  ASSIGN_OR_RETURN(const int64_t num_replicas, waited.Integer());
  if (num_replicas >= node_->options_.wait_for_replicas) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      "the command may have run, but only ", num_replicas, " of ",
      node_->options_.wait_for_replicas,
      " replicas (redis.wait_for_replicas) have what it wrote, see whether they run and keep up: ",
      node_->address()));
}

absl::StatusOr<std::vector<Reply>> Node::Exchange::Receive() {
  absl::StatusOr<std::vector<Reply>> replies = connection_->Receive(num_sent_, limit_);
  if (!replies.ok()) return Fail(replies.status());
  node_->GiveBack(std::move(connection_));
  if (!waits_for_replicas_) return replies;
  const Reply waited = std::move(replies->back());
  replies->pop_back();
  RETURN_IF_ERROR(CheckReplicas(waited, *replies));
  return replies;
}

absl::Status Node::Exchange::Fail(const absl::Status& error) {
  connection_.reset();
  if (IsTimeout(error)) {
    // A caller in a hurry says nothing about the server; a long silence does.
    absl::Status status = node_->Timeout(limit_is_callers_);
    node_->Drop(absl::UnavailableError(status.message()),
                absl::Now() - start_ >= node_->options_.connect_timeout, /*is_probe=*/false);
    return status;
  }
  absl::Status status = absl::UnavailableError(
      absl::StrCat("the connection to Redis broke, the command may have run: ", node_->address(),
                   ": ", error.message()));
  // The server may just have closed this connection: the next call finds out.
  node_->Drop(status, /*server_is_down=*/false, /*is_probe=*/false);
  return status;
}

absl::StatusOr<Node::ConnectionPtr> Node::Take(absl::Time limit, bool limit_is_callers) {
  ASSIGN_OR_RETURN(Place place, TakePlace(limit, limit_is_callers));
  if (place.connection != nullptr) return std::move(place.connection);
  const absl::Time start = absl::Now();
  const absl::Time connect_limit = start + options_.connect_timeout;
  absl::StatusOr<ConnectionPtr> opened =
      Connection::Open(options_, role_, std::min(limit, connect_limit));
  if (!opened.ok()) {
    const bool in_a_hurry = IsTimeout(opened.status()) && limit < connect_limit;
    absl::Status status = opened.status();
    if (IsTimeout(status) && !(in_a_hurry && limit_is_callers)) {
      status = absl::UnavailableError(status.message());
    }
    Drop(absl::Status(IsTimeout(status) ? absl::StatusCode::kUnavailable : status.code(),
                      status.message()),
         /*server_is_down=*/!in_a_hurry, place.is_probe,
         /*is_refused=*/absl::Now() - start < kRefusalTime);
    return status;
  }
  sync::MutexLock lock(mutex_);
  num_failures_ = 0;
  if (place.is_probe) is_probing_ = false;
  changed_.NotifyAll();
  return opened;
}

absl::StatusOr<Node::Place> Node::TakePlace(absl::Time limit, bool limit_is_callers) {
  std::vector<ConnectionPtr> dead;  // closed after the lock is released
  const absl::Time patience = std::min(limit, absl::Now() + kPatience);
  const auto wait_until = [this](absl::Time time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    changed_.WaitUntil(
        mutex_, std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(time - absl::Now()));
  };
  sync::MutexLock lock(mutex_);
  while (true) {
    if (num_failures_ > 0) {
      const absl::Time now = absl::Now();
      if (is_probing_ || now < retry_at_) {
        const absl::Time next = is_probing_ ? patience : retry_at_;
        if (!is_refusing_ || now >= patience || next > patience) return last_error_;
        const int num_failures = num_failures_;
        wait_until(next);
        // Somebody has just tried.
        if (num_failures_ > num_failures) return last_error_;
        continue;
      }
      is_probing_ = true;
      ++num_taken_;
      return Place{.is_probe = true};
    }
    while (!idle_.empty()) {
      ConnectionPtr connection = std::move(idle_.back());
      idle_.pop_back();
      if (connection->IsQuiet()) {
        ++num_taken_;
        return Place{.connection = std::move(connection)};
      }
      dead.push_back(std::move(connection));
    }
    if (num_taken_ < options_.pool_size) {
      ++num_taken_;
      return Place{};
    }
    if (absl::Now() >= limit) return Timeout(limit_is_callers);
    wait_until(limit);
  }
}

void Node::GiveBack(ConnectionPtr connection) {
  sync::MutexLock lock(mutex_);
  --num_taken_;
  idle_.push_back(std::move(connection));
  changed_.NotifyOne();
}

void Node::Drop(const absl::Status& status, bool server_is_down, bool is_probe, bool is_refused) {
  std::vector<ConnectionPtr> dead;  // closed after the lock is released
  sync::MutexLock lock(mutex_);
  --num_taken_;
  if (is_probe) is_probing_ = false;
  // Calls that were under way when the server was found down tell nothing new.
  if (is_probe || (server_is_down && num_failures_ == 0)) {
    num_failures_ = std::min(num_failures_ + 1, 1000);
    last_error_ = status;
    is_refusing_ = is_refused;
    retry_at_ = absl::Now() + BackOff(num_failures_, is_refused);
    dead.swap(idle_);
  }
  changed_.NotifyAll();
}

absl::Status Node::Timeout(bool limit_is_callers) const {
  const std::string message = absl::StrCat(
      "Redis did not answer in time, see whether it is overloaded: ", options_.address);
  return limit_is_callers ? absl::DeadlineExceededError(message) : absl::UnavailableError(message);
}

}  // namespace mneme::redis

#include "common/redis/dispatcher.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/redis/hash_slot.h"
#include "common/redis/node.h"
#include "common/redis/socket.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(10);
constexpr absl::Duration kLongestPause = absl::Milliseconds(100);

// Errors that Redis answers instead of running the command, and that pass.
bool IsPassingRefusal(absl::string_view error) {
  for (const absl::string_view word :
       {"TRYAGAIN ", "CLUSTERDOWN ", "LOADING ", "MASTERDOWN ", "READONLY "}) {
    if (absl::StartsWith(error, word)) return true;
  }
  return false;
}

// "MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381".
struct Redirection {
  bool is_for_good = false;
  int slot = -1;
  std::string address;
};

std::optional<Redirection> ParseRedirection(const Reply& reply, const std::string& answered_by) {
  if (reply.kind() != Reply::Kind::kError) return std::nullopt;
  const std::vector<std::string> words = absl::StrSplit(reply.text(), ' ');
  if (words.size() != 3 || (words[0] != "MOVED" && words[0] != "ASK")) return std::nullopt;
  Redirection redirection;
  redirection.is_for_good = words[0] == "MOVED";
  redirection.address = words[2];
  if (!absl::SimpleAtoi(words[1], &redirection.slot)) return std::nullopt;
  if (absl::StartsWith(words[2], ":")) {  // the host that answered
    const absl::StatusOr<HostPort> host = SplitAddress(answered_by);
    if (!host.ok()) return std::nullopt;
    redirection.address = JoinAddress(host->host, words[2].substr(1));
  }
  if (!SplitAddress(redirection.address).ok()) return std::nullopt;
  return redirection;
}

// The same words without copies of their bytes.
Command Borrow(const Command& command) {
  Command borrowed;
  borrowed.reserve(command.size());
  for (const Argument& argument : command) borrowed.push_back(argument.Borrowed());
  return borrowed;
}

}  // namespace

// A command that has not run.
struct Dispatcher::Pending {
  size_t index = 0;  // in the caller's list
  int slot = -1;     // -1: any server
  NodePtr asking;    // the server to try once, after ASK
  Reply refusal;     // the last one
};

// What one server is to run.
struct Dispatcher::Group {
  NodePtr node;
  std::vector<const Pending*> pending;
};

struct Dispatcher::Round {
  std::vector<Pending> pending;
  std::string hint;  // who knows the map better
  bool needs_refresh = false;
  bool needs_pause = false;
  absl::Status unreachable;  // why nothing could be sent; OK: something was
};

Dispatcher::Dispatcher(const Options& options, std::unique_ptr<Directory> directory)
    : command_timeout_(options.command_timeout), directory_(std::move(directory)) {}

absl::Time Dispatcher::LimitOf(absl::Time deadline) const {
  return std::min(deadline, absl::Now() + command_timeout_);
}

absl::StatusOr<std::vector<Reply>> Dispatcher::Run(absl::Span<const Command> commands,
                                                   absl::Time deadline, Ack ack) {
  const absl::Time limit = LimitOf(deadline);
  absl::StatusOr<std::vector<Reply>> replies = RunUntil(commands, limit, ack);
  if (absl::IsDeadlineExceeded(replies.status()) && limit < deadline) {
    return absl::UnavailableError(replies.status().message());
  }
  return replies;
}

absl::StatusOr<std::vector<Reply>> Dispatcher::RunUntil(absl::Span<const Command> commands,
                                                        absl::Time limit, Ack ack) {
  Round round;
  round.pending.resize(commands.size());
  for (size_t i = 0; i < commands.size(); ++i) {
    round.pending[i].index = i;
    if (!directory_->is_partitioned()) continue;
    ASSIGN_OR_RETURN(const Target target, TargetOf(commands[i]));
    if (target.scope == Scope::kEachNode) {
      return absl::InvalidArgumentError(
          absl::StrCat("in a Redis Cluster this command concerns one server only, say which (see "
                       "Client::Masters): ",
                       commands[i][0].bytes()));
    }
    round.pending[i].slot = target.slot;
  }
  std::vector<Reply> replies(commands.size());
  absl::Duration pause = kFirstPause;
  while (true) {
    RETURN_IF_ERROR(RunRound(commands, limit, ack, &round, &replies));
    if (round.pending.empty()) return replies;
    if (round.needs_refresh) RETURN_IF_ERROR(directory_->Refresh(round.hint, limit));
    if (round.needs_pause) {
      if (absl::Now() + pause >= limit) break;
      absl::SleepFor(pause);
      pause = std::min(pause * 2, kLongestPause);
    } else {
      // A server that keeps sending us elsewhere.
      pause = std::max(pause, kFirstPause);
    }
    if (absl::Now() >= limit) break;
  }
  RETURN_IF_ERROR(round.unreachable);
  for (Pending& left : round.pending) {
    const bool is_passing = IsPassingRefusal(left.refusal.text());
    replies[left.index] =
        is_passing ? std::move(left.refusal)
                   : Reply::OfError("TRYAGAIN sent from server to server", "Redis Cluster");
  }
  return replies;
}

absl::StatusOr<std::vector<Dispatcher::Group>> Dispatcher::Route(const Round& round) {
  std::map<std::string, Group> groups;
  NodePtr any;  // the same for all of this round
  for (const Pending& command : round.pending) {
    NodePtr node = command.asking;
    if (node == nullptr && command.slot >= 0) node = directory_->OwnerOf(command.slot);
    if (node == nullptr && command.slot < 0) {
      if (any == nullptr) any = directory_->OwnerOf(-1);
      node = any;
    }
    if (node == nullptr) {
      return absl::UnavailableError(
          command.slot >= 0
              ? absl::StrCat("no server of the Redis Cluster has the hash slot ", command.slot)
              : "no Redis master is known");
    }
    Group& group = groups[node->address()];
    group.node = std::move(node);
    group.pending.push_back(&command);
  }
  std::vector<Group> sorted;
  sorted.reserve(groups.size());
  for (auto& [address, group] : groups) sorted.push_back(std::move(group));
  return sorted;
}

absl::Status Dispatcher::RunRound(absl::Span<const Command> commands, absl::Time limit, Ack ack,
                                  Round* round, std::vector<Reply>* replies) {
  round->needs_refresh = false;
  round->needs_pause = false;
  round->hint.clear();
  absl::StatusOr<std::vector<Group>> groups = Route(*round);
  std::vector<Node::Exchange> exchanges;
  absl::Status status = groups.status();
  for (size_t i = 0; status.ok() && i < groups->size(); ++i) {
    absl::StatusOr<Node::Exchange> exchange = (*groups)[i].node->Begin(limit);
    status = exchange.status();
    if (exchange.ok()) exchanges.push_back(*std::move(exchange));
  }
  if (!status.ok()) {
    if (!absl::IsUnavailable(status)) return status;
    // The first time there is no map yet, and nobody to wait for.
    round->needs_pause = directory_->OwnerOf(-1) != nullptr;
    round->needs_refresh = true;
    round->unreachable = status;
    return absl::OkStatus();
  }
  round->unreachable = absl::OkStatus();

  for (size_t i = 0; i < exchanges.size(); ++i) {
    const Group& group = (*groups)[i];
    const bool is_whole = group.pending.size() == commands.size() &&
                          std::none_of(group.pending.begin(), group.pending.end(),
                                       [](const Pending* p) { return p->asking != nullptr; });
    if (is_whole) {
      status.Update(exchanges[i].Send(commands, ack));
      continue;
    }
    std::vector<Command> part;
    part.reserve(group.pending.size());
    for (const Pending* command : group.pending) {
      if (command->asking != nullptr) part.push_back({"ASKING"});
      part.push_back(Borrow(commands[command->index]));
    }
    status.Update(exchanges[i].Send(part, ack));
  }
  std::vector<Pending> left;
  for (size_t i = 0; i < exchanges.size(); ++i) {
    if (!exchanges[i].is_open()) continue;  // Send failed
    absl::StatusOr<std::vector<Reply>> answers = exchanges[i].Receive();
    if (!answers.ok()) {
      status.Update(answers.status());
      continue;
    }
    size_t next = 0;
    for (const Pending* command : (*groups)[i].pending) {
      if (command->asking != nullptr) ++next;  // the answer to ASKING
      Reply& answer = (*answers)[next++];
      std::optional<Pending> again = Judge(*command, answer, (*groups)[i].node->address(), round);
      if (again.has_value()) {
        left.push_back(*std::move(again));
      } else {
        (*replies)[command->index] = std::move(answer);
      }
    }
  }
  RETURN_IF_ERROR(status);
  std::sort(left.begin(), left.end(),
            [](const Pending& a, const Pending& b) { return a.index < b.index; });
  round->pending = std::move(left);
  return absl::OkStatus();
}

std::optional<Dispatcher::Pending> Dispatcher::Judge(const Pending& command, const Reply& reply,
                                                     const std::string& answered_by, Round* round) {
  if (reply.kind() != Reply::Kind::kError) return std::nullopt;
  Pending again{command.index, command.slot, nullptr, reply};
  if (directory_->is_partitioned()) {
    if (const auto redirection = ParseRedirection(reply, answered_by)) {
      NodePtr node = directory_->NodeAt(redirection->address);
      // A server that sends us on for a second time waits for another one's word.
      round->needs_pause |= command.refusal.kind() == Reply::Kind::kError;
      if (redirection->is_for_good) {
        directory_->SetOwner(redirection->slot, std::move(node));
        round->needs_refresh = true;
        round->hint = redirection->address;
      } else {
        again.asking = std::move(node);
      }
      return again;
    }
  }
  if (!IsPassingRefusal(reply.text())) return std::nullopt;
  round->needs_pause = true;
  round->needs_refresh = true;
  return again;
}

absl::Status Dispatcher::Ping(absl::Time deadline) {
  const bool is_cluster = directory_->is_partitioned();
  const Command command = is_cluster ? Command{"CLUSTER", "INFO"} : Command{"PING"};
  ASSIGN_OR_RETURN(const std::vector<Reply> replies,
                   Run(absl::MakeConstSpan(&command, 1), deadline, Ack::kServer));
  RETURN_IF_ERROR(replies[0].status());
  if (!is_cluster || absl::StrContains(replies[0].text(), "cluster_state:ok")) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      "the Redis Cluster is down: see `redis-cli cluster info`, some hash slots have no server");
}

absl::StatusOr<std::vector<std::string>> Dispatcher::Masters(absl::Time deadline) {
  std::vector<NodePtr> masters = directory_->Masters();
  if (masters.empty()) {
    RETURN_IF_ERROR(directory_->Refresh("", LimitOf(deadline)));
    masters = directory_->Masters();
  }
  std::vector<std::string> addresses;
  addresses.reserve(masters.size());
  for (const NodePtr& node : masters) addresses.push_back(node->address());
  return addresses;
}

absl::StatusOr<std::vector<Reply>> Dispatcher::RunOn(const std::string& master,
                                                     absl::Span<const Command> commands,
                                                     absl::Time deadline) {
  for (const NodePtr& node : directory_->Masters()) {
    if (node->address() != master) continue;
    const absl::Time limit = LimitOf(deadline);
    absl::StatusOr<std::vector<Reply>> replies = node->Run(commands, limit);
    // The next call of Masters knows better.
    if (absl::IsUnavailable(replies.status())) directory_->Refresh("", limit).IgnoreError();
    return replies;
  }
  return NoSuchMaster(master);
}

}  // namespace mneme::redis

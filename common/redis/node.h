// One Redis server: a pool of connections to it and the knowledge whether it answers.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/redis/command.h"
#include "common/redis/connection.h"
#include "common/redis/options.h"
#include "common/redis/reply.h"
#include "common/sync/mutex.h"

namespace mneme::redis {

// Thread-safe. At most `pool_size` connections are open, made when needed; a caller waits for a
// free one within its time.
//
// A server that cannot be reached, or lets a caller wait for connect_timeout without an answer, is
// left alone for a while (50 ms, doubling to 1 s): calls in that time fail at once with the last
// error. Then one call tries a new connection, at the cost of connect_timeout at most, while the
// others go on failing at once.
//
// A server that refuses connections at once (its process is not there, or loads its data) costs
// nothing to ask: it is asked again every 50 ms, and calls wait for that. So the first call
// after it came back succeeds, and one while it is away fails a little later.
class Node {
 public:
  class Exchange;

  // With Role::kMaster a server that has become a replica counts as one that cannot be reached.
  explicit Node(Options options, Role role = Role::kAny)
      : options_(std::move(options)), role_(role) {}

  // Runs commands as one pipeline. The call ends by `deadline` and within command_timeout.
  absl::StatusOr<std::vector<Reply>> Run(absl::Span<const Command> commands, absl::Time deadline,
                                         Ack ack = Ack::kServer);

  // The first part of Run, for who talks to several servers at once. An error means that no command
  // was sent, here or elsewhere.
  absl::StatusOr<Exchange> Begin(absl::Time deadline);

  const std::string& address() const { return options_.address; }

 private:
  using ConnectionPtr = std::unique_ptr<Connection>;

  // An idle connection, or none and the right to open one.
  struct Place {
    ConnectionPtr connection;
    bool is_probe = false;  // the one attempt on a server found down
  };

  absl::StatusOr<ConnectionPtr> Take(absl::Time limit, bool limit_is_callers);
  absl::StatusOr<Place> TakePlace(absl::Time limit, bool limit_is_callers);
  void GiveBack(ConnectionPtr connection);
  // Gives a place back without its connection.
  // `is_refused`: the server said so at once.
  void Drop(const absl::Status& status, bool server_is_down, bool is_probe,
            bool is_refused = false);
  absl::Status Timeout(bool limit_is_callers) const;

  const Options options_;
  const Role role_;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::vector<ConnectionPtr> idle_ ABSL_GUARDED_BY(mutex_);
  int num_taken_ ABSL_GUARDED_BY(mutex_) = 0;
  // How the server was last found down; meaningful while num_failures_ > 0.
  int num_failures_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_refusing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status last_error_ ABSL_GUARDED_BY(mutex_);
  absl::Time retry_at_ ABSL_GUARDED_BY(mutex_);
  bool is_probing_ ABSL_GUARDED_BY(mutex_) = false;
};

// A connection on loan for one pipeline. Must not outlive its node.
class Node::Exchange {
 public:
  Exchange(Exchange&& other) noexcept = default;
  Exchange& operator=(Exchange&&) = delete;
  // Closes the connection if it still owes replies.
  ~Exchange();

  // To be called once. After an error the commands may have run. `commands` may go once this has
  // returned.
  absl::Status Send(absl::Span<const Command> commands, Ack ack = Ack::kServer);
  // Returns the replies to what was sent. After an error the commands may have run; UNAVAILABLE is
  // also that too few replicas have what they wrote.
  absl::StatusOr<std::vector<Reply>> Receive();
  // Returns whether the replies can still be received.
  bool is_open() const { return connection_ != nullptr; }

 private:
  friend class Node;
  Exchange(Node& node, ConnectionPtr connection, absl::Time limit, bool limit_is_callers)
      : node_(&node),
        connection_(std::move(connection)),
        limit_(limit),
        limit_is_callers_(limit_is_callers) {}
  absl::Status Fail(const absl::Status& status);
  Command Wait() const;
  absl::Status CheckReplicas(const Reply& waited, absl::Span<const Reply> replies) const;

  Node* node_;
  ConnectionPtr connection_;  // null: given back
  absl::Time limit_;
  bool limit_is_callers_;
  absl::Time start_;
  size_t num_sent_ = 0;
  bool waits_for_replicas_ = false;  // the last of what was sent is a WAIT
};

}  // namespace mneme::redis

// One Redis server: a pool of connections to it and the knowledge whether it answers.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/redis/connection.h"
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
class Node {
 public:
  explicit Node(Options options) : options_(std::move(options)) {}

  // Runs commands as one pipeline. The call ends by `deadline` and within command_timeout.
  absl::StatusOr<std::vector<Reply>> Run(const std::vector<Command>& commands, absl::Time deadline);

  const Options& options() const { return options_; }

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
  void Drop(const absl::Status& status, bool server_is_down, bool is_probe);
  absl::Status Timeout(bool limit_is_callers) const;

  const Options options_;
  sync::Mutex mutex_;
  sync::CondVar changed_;
  std::vector<ConnectionPtr> idle_ ABSL_GUARDED_BY(mutex_);
  int num_taken_ ABSL_GUARDED_BY(mutex_) = 0;
  // How the server was last found down; meaningful while num_failures_ > 0.
  int num_failures_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status last_error_ ABSL_GUARDED_BY(mutex_);
  absl::Time retry_at_ ABSL_GUARDED_BY(mutex_);
  bool is_probing_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace mneme::redis

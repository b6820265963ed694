// Which servers run a client's commands. One implementation per Mode: SingleServer; Dispatcher for
// several servers (Cluster) or a changing one (Sentinel).
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/redis/command.h"
#include "common/redis/node.h"
#include "common/redis/options.h"
#include "common/redis/reply.h"

namespace mneme::redis {

// Thread-safe. The methods are those of Client.
class Topology {
 public:
  virtual ~Topology() = default;

  virtual absl::StatusOr<std::vector<Reply>> Run(absl::Span<const Command> commands,
                                                 absl::Time deadline, Ack ack) = 0;
  virtual absl::Status Ping(absl::Time deadline) = 0;
  virtual absl::StatusOr<std::vector<std::string>> Masters(absl::Time deadline) = 0;
  virtual absl::StatusOr<std::vector<Reply>> RunOn(const std::string& master,
                                                   absl::Span<const Command> commands,
                                                   absl::Time deadline) = 0;
};

// The one server at options.address.
class SingleServer final : public Topology {
 public:
  explicit SingleServer(Options options) : node_(std::move(options)) {}

  absl::StatusOr<std::vector<Reply>> Run(absl::Span<const Command> commands, absl::Time deadline,
                                         Ack ack) override {
    return node_.Run(commands, deadline, ack);
  }
  absl::Status Ping(absl::Time deadline) override;
  absl::StatusOr<std::vector<std::string>> Masters(absl::Time) override {
    return std::vector<std::string>{node_.address()};
  }
  absl::StatusOr<std::vector<Reply>> RunOn(const std::string& master,
                                           absl::Span<const Command> commands,
                                           absl::Time deadline) override;

 private:
  Node node_;
};

// NOT_FOUND of RunOn.
absl::Status NoSuchMaster(const std::string& address);

}  // namespace mneme::redis

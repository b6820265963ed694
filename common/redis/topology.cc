#include "common/redis/topology.h"

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::redis {

absl::Status SingleServer::Ping(absl::Time deadline) {
  const Command command = {"PING"};
  ASSIGN_OR_RETURN(const std::vector<Reply> replies,
                   node_.Run(absl::MakeConstSpan(&command, 1), deadline));
  return replies[0].status();
}

absl::StatusOr<std::vector<Reply>> SingleServer::RunOn(const std::string& master,
                                                       absl::Span<const Command> commands,
                                                       absl::Time deadline) {
  if (master != node_.address()) return NoSuchMaster(master);
  return node_.Run(commands, deadline);
}

absl::Status NoSuchMaster(const std::string& address) {
  return absl::NotFoundError(absl::StrCat("no longer a Redis master of ours: ", address));
}

}  // namespace mneme::redis

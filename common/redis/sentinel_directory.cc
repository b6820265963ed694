#include "common/redis/sentinel_directory.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/command.h"
#include "common/redis/socket.h"

namespace mneme::redis {
namespace {

Options SentinelOptions(const Options& options, const std::string& address) {
  Options sentinel = OptionsAt(options, address);
  sentinel.username = options.sentinel_username;
  sentinel.password = options.sentinel_password;
  sentinel.database = 0;
  sentinel.pool_size = 1;
  return sentinel;
}

// The fields of the login are others for a Sentinel.
absl::Status ErrorOfSentinel(const absl::Status& status, const std::string& address) {
  return absl::Status(
      status.code(),
      absl::StrCat("Sentinel ", address, " (its login is redis.sentinel_username and ",
                   "redis.sentinel_password_file): ", status.message()));
}

}  // namespace

SentinelDirectory::SentinelDirectory(Options options) : options_(std::move(options)) {
  for (const std::string& address : AddressesOf(options_)) {
    sentinels_.push_back(std::make_shared<Node>(SentinelOptions(options_, address)));
  }
}

absl::Status SentinelDirectory::Refresh(const std::string&, absl::Time limit) {
  return gate_.Pass(limit, [&] { return Ask(limit); });
}

absl::Status SentinelDirectory::Ask(absl::Time limit) {
  if (sentinels_.empty() || options_.master_name.empty()) {
    return absl::FailedPreconditionError(
        "redis.addresses (of the Sentinels) and redis.master_name must be set");
  }
  size_t turn = 0;
  {
    sync::MutexLock lock(mutex_);
    // Another one each time: a Sentinel that is cut off names the old master.
    turn = turn_++;
  }
  absl::Status status;
  const Command command = {"SENTINEL", "GET-MASTER-ADDR-BY-NAME", options_.master_name};
  for (size_t i = 0; i < sentinels_.size() && absl::Now() < limit; ++i) {
    Node& sentinel = *sentinels_[(turn + i) % sentinels_.size()];
    const absl::Time node_limit = std::min(limit, absl::Now() + options_.connect_timeout);
    const auto replies = sentinel.Run(absl::MakeConstSpan(&command, 1), node_limit);
    const absl::Status answer = replies.ok() ? (*replies)[0].status() : replies.status();
    if (!answer.ok()) {
      status = ErrorOfSentinel(answer, sentinel.address());
      continue;
    }
    const std::vector<Reply>& parts = (*replies)[0].elements();
    if (parts.size() == 2) {
      Install(JoinAddress(parts[0].text(), parts[1].text()));
      return absl::OkStatus();
    }
    status = absl::FailedPreconditionError(
        absl::StrCat("Sentinel ", sentinel.address(),
                     " knows no such master, check redis.master_name: ", options_.master_name));
  }
  if (status.ok()) status = absl::UnavailableError("no Sentinel could be asked in time");
  if (absl::IsDeadlineExceeded(status)) return absl::UnavailableError(status.message());
  return status;
}

void SentinelDirectory::Install(const std::string& address) {
  NodePtr gone;  // destroyed after the lock is released
  sync::MutexLock lock(mutex_);
  if (master_ != nullptr && master_->address() == address) return;
  gone = std::move(master_);
  master_ = std::make_shared<Node>(OptionsAt(options_, address), Role::kMaster);
}

NodePtr SentinelDirectory::OwnerOf(int) {
  sync::MutexLock lock(mutex_);
  return master_;
}

std::vector<NodePtr> SentinelDirectory::Masters() {
  const NodePtr master = OwnerOf(-1);
  if (master == nullptr) return {};
  return {master};
}

NodePtr SentinelDirectory::NodeAt(const std::string&) { return OwnerOf(-1); }

}  // namespace mneme::redis

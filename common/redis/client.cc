#include "common/redis/client.h"

#include <openssl/sha.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/redis/cluster_directory.h"
#include "common/redis/dispatcher.h"
#include "common/redis/hash_slot.h"
#include "common/redis/sentinel_directory.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

std::unique_ptr<Topology> MakeTopology(Options options) {
  switch (options.mode) {
    case Mode::kCluster:
      return std::make_unique<Dispatcher>(options, std::make_unique<ClusterDirectory>(options));
    case Mode::kSentinel:
      return std::make_unique<Dispatcher>(options, std::make_unique<SentinelDirectory>(options));
    case Mode::kSingle:
      break;
  }
  return std::make_unique<SingleServer>(std::move(options));
}

absl::Status CheckOneSlot(const std::vector<std::string>& keys) {
  for (size_t i = 1; i < keys.size(); ++i) {
    if (HashSlot(keys[i]) == HashSlot(keys[0])) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "the keys of a script are in different hash slots, give them the same {tag}: ", keys[0],
        ", ", keys[i]));
  }
  return absl::OkStatus();
}

absl::StatusOr<Reply> OnlyReply(absl::StatusOr<std::vector<Reply>> replies) {
  RETURN_IF_ERROR(replies.status());
  RETURN_IF_ERROR((*replies)[0].status());
  return std::move((*replies)[0]);
}

}  // namespace

Script::Script(std::string source, Ack ack) : source_(std::move(source)), ack_(ack) {
  unsigned char digest[SHA_DIGEST_LENGTH];
  SHA1(reinterpret_cast<const unsigned char*>(source_.data()), source_.size(), digest);
  sha1_ = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

Client::Client(Options options)
    : address_(absl::StrJoin(AddressesOf(options), ",")),
      topology_(MakeTopology(std::move(options))) {}

absl::StatusOr<Reply> Client::Run(const Command& command, absl::Time deadline, Ack ack) {
  return OnlyReply(topology_->Run(absl::MakeConstSpan(&command, 1), deadline, ack));
}

absl::StatusOr<std::vector<Reply>> Client::RunPipeline(const std::vector<Command>& commands,
                                                       absl::Time deadline) {
  if (commands.empty()) return std::vector<Reply>();
  return topology_->Run(commands, deadline, Ack::kServer);
}

absl::StatusOr<Reply> Client::Eval(const Script& script, const std::vector<std::string>& keys,
                                   const std::vector<Argument>& arguments, absl::Time deadline) {
  RETURN_IF_ERROR(CheckOneSlot(keys));
  Command command = {"EVALSHA", Argument::Borrow(script.sha1()), absl::StrCat(keys.size())};
  command.reserve(command.size() + keys.size() + arguments.size());
  for (const std::string& key : keys) command.push_back(Argument::Borrow(key));
  for (const Argument& argument : arguments) command.push_back(argument.Borrowed());
  ASSIGN_OR_RETURN(std::vector<Reply> replies,
                   topology_->Run(absl::MakeConstSpan(&command, 1), deadline, script.ack()));
  if (absl::StartsWith(replies[0].text(), "NOSCRIPT ") && !replies[0].status().ok()) {
    command[0] = "EVAL";
    command[1] = Argument::Borrow(script.source());
    return Run(command, deadline, script.ack());
  }
  return OnlyReply(std::move(replies));
}

absl::Status Client::Ping(absl::Time deadline) { return topology_->Ping(deadline); }

absl::StatusOr<std::vector<std::string>> Client::Masters(absl::Time deadline) {
  return topology_->Masters(deadline);
}

absl::StatusOr<Reply> Client::RunOn(const std::string& master, const Command& command,
                                    absl::Time deadline) {
  return OnlyReply(topology_->RunOn(master, absl::MakeConstSpan(&command, 1), deadline));
}

absl::StatusOr<std::vector<Reply>> Client::RunOnEveryMaster(const Command& command,
                                                            absl::Time deadline) {
  ASSIGN_OR_RETURN(const std::vector<std::string> masters, Masters(deadline));
  std::vector<Reply> replies;
  replies.reserve(masters.size());
  for (const std::string& master : masters) {
    ASSIGN_OR_RETURN(Reply reply, RunOn(master, command, deadline));
    replies.push_back(std::move(reply));
  }
  return replies;
}

}  // namespace mneme::redis

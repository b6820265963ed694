#include "common/redis/client.h"

#include <openssl/sha.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"

namespace mneme::redis {

Script::Script(std::string source) : source_(std::move(source)) {
  unsigned char digest[SHA_DIGEST_LENGTH];
  SHA1(reinterpret_cast<const unsigned char*>(source_.data()), source_.size(), digest);
  sha1_ = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

absl::StatusOr<Reply> Client::Run(const Command& command, absl::Time deadline) {
  ASSIGN_OR_RETURN(std::vector<Reply> replies, node_.Run({command}, deadline));
  RETURN_IF_ERROR(replies[0].status());
  return std::move(replies[0]);
}

absl::StatusOr<std::vector<Reply>> Client::RunPipeline(const std::vector<Command>& commands,
                                                       absl::Time deadline) {
  if (commands.empty()) return std::vector<Reply>();
  return node_.Run(commands, deadline);
}

absl::StatusOr<Reply> Client::Eval(const Script& script, const std::vector<std::string>& keys,
                                   const std::vector<std::string>& arguments, absl::Time deadline) {
  Command command = {"EVALSHA", script.sha1(), absl::StrCat(keys.size())};
  command.insert(command.end(), keys.begin(), keys.end());
  command.insert(command.end(), arguments.begin(), arguments.end());
  ASSIGN_OR_RETURN(std::vector<Reply> replies, node_.Run({command}, deadline));
  if (absl::StartsWith(replies[0].text(), "NOSCRIPT ") && !replies[0].status().ok()) {
    command[0] = "EVAL";
    command[1] = script.source();
    return Run(command, deadline);
  }
  RETURN_IF_ERROR(replies[0].status());
  return std::move(replies[0]);
}

absl::Status Client::Ping(absl::Time deadline) { return Run({"PING"}, deadline).status(); }

}  // namespace mneme::redis

#include "common/redis/cluster_directory.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/redis/command.h"
#include "common/redis/hash_slot.h"
#include "common/redis/socket.h"
#include "common/status/status_macros.h"

namespace mneme::redis {
namespace {

absl::Status Malformed(const std::string& asked) {
  return absl::UnavailableError(
      absl::StrCat("Redis answers something else to CLUSTER SLOTS: ", asked));
}

// A node of an entry is [host, port, ...].
absl::StatusOr<std::string> ParseNode(const Reply& node, const std::string& asked) {
  if (node.elements().size() < 2) return Malformed(asked);
  const absl::StatusOr<int64_t> port = node.elements()[1].Integer();
  if (!port.ok() || *port <= 0 || *port > 65535) return Malformed(asked);
  std::string host = node.elements()[0].text();
  if (host.empty()) {
    ASSIGN_OR_RETURN(HostPort own, SplitAddress(asked));
    host = std::move(own.host);
  }
  return JoinAddress(host, absl::StrCat(*port));
}

}  // namespace

absl::StatusOr<std::vector<SlotRange>> ParseSlots(const Reply& reply, const std::string& asked) {
  RETURN_IF_ERROR(reply.status());
  if (reply.kind() != Reply::Kind::kArray) return Malformed(asked);
  std::vector<SlotRange> ranges;
  for (const Reply& entry : reply.elements()) {
    if (entry.elements().size() < 3) return Malformed(asked);
    const absl::StatusOr<int64_t> first = entry.elements()[0].Integer();
    const absl::StatusOr<int64_t> last = entry.elements()[1].Integer();
    if (!first.ok() || !last.ok() || *first < 0 || *first > *last || *last >= kNumSlots) {
      return Malformed(asked);
    }
    SlotRange range{static_cast<int>(*first), static_cast<int>(*last), {}};
    for (size_t i = 2; i < entry.elements().size(); ++i) {
      ASSIGN_OR_RETURN(std::string address, ParseNode(entry.elements()[i], asked));
      range.addresses.push_back(std::move(address));
    }
    ranges.push_back(std::move(range));
  }
  return ranges;
}

ClusterDirectory::ClusterDirectory(Options options)
    : options_(std::move(options)), owners_(kNumSlots) {}

absl::Status ClusterDirectory::Refresh(const std::string& hint, absl::Time limit) {
  return gate_.Pass(limit, [&] { return Ask(hint, limit); });
}

absl::Status ClusterDirectory::Ask(const std::string& hint, absl::Time limit) {
  absl::Status status =
      absl::FailedPreconditionError("redis.addresses is empty: give some nodes of the cluster");
  const Command command = {"CLUSTER", "SLOTS"};
  for (const NodePtr& node : Candidates(hint)) {
    const absl::Time node_limit = std::min(limit, absl::Now() + options_.connect_timeout);
    const auto replies = node->Run(absl::MakeConstSpan(&command, 1), node_limit);
    if (!replies.ok()) {
      status = replies.status();
      if (absl::Now() >= limit) break;
      continue;
    }
    const auto ranges = ParseSlots((*replies)[0], node->address());
    if (!ranges.ok()) {
      status = ranges.status();
    } else if (ranges->empty()) {
      // A node that has been reset, or not yet met the others.
      status = absl::UnavailableError(
          absl::StrCat("this Redis knows of no hash slots: ", node->address()));
    } else {
      Install(*ranges);
      return absl::OkStatus();
    }
  }
  // Waiting for one node longer than it is allowed is no deadline of the caller's.
  if (absl::IsDeadlineExceeded(status)) return absl::UnavailableError(status.message());
  return status;
}

std::vector<NodePtr> ClusterDirectory::Candidates(const std::string& hint) {
  sync::MutexLock lock(mutex_);
  std::vector<NodePtr> candidates;
  std::set<std::string> seen;
  const auto add = [&](NodePtr node) {
    if (seen.insert(node->address()).second) candidates.push_back(std::move(node));
  };
  if (!hint.empty()) add(NodeAtLocked(hint));
  // Another one each time: a node cut off from the others answers what was.
  for (size_t i = 0; i < masters_.size(); ++i) add(masters_[(turn_ + i) % masters_.size()]);
  ++turn_;
  for (const auto& [address, node] : nodes_) add(node);
  for (const std::string& address : AddressesOf(options_)) add(NodeAtLocked(address));
  return candidates;
}

void ClusterDirectory::Install(const std::vector<SlotRange>& ranges) {
  std::map<std::string, NodePtr> gone;  // destroyed after the lock is released
  sync::MutexLock lock(mutex_);
  gone.swap(nodes_);
  const auto keep = [&](const std::string& address) {
    const auto known = gone.find(address);
    if (known != gone.end()) nodes_.insert(*known);
    return NodeAtLocked(address);
  };
  std::fill(owners_.begin(), owners_.end(), nullptr);
  std::map<std::string, NodePtr> masters;
  for (const SlotRange& range : ranges) {
    for (const std::string& address : range.addresses) keep(address);
    const NodePtr master = NodeAtLocked(range.addresses[0]);
    masters[master->address()] = master;
    std::fill(owners_.begin() + range.first, owners_.begin() + range.last + 1, master);
  }
  masters_.clear();
  for (const auto& [address, node] : masters) masters_.push_back(node);
}

NodePtr ClusterDirectory::OwnerOf(int slot) {
  sync::MutexLock lock(mutex_);
  if (slot >= 0) return owners_[slot];
  if (masters_.empty()) return nullptr;
  return masters_[turn_++ % masters_.size()];
}

std::vector<NodePtr> ClusterDirectory::Masters() {
  sync::MutexLock lock(mutex_);
  return masters_;
}

NodePtr ClusterDirectory::NodeAt(const std::string& address) {
  sync::MutexLock lock(mutex_);
  return NodeAtLocked(address);
}

NodePtr ClusterDirectory::NodeAtLocked(const std::string& address) {
  NodePtr& node = nodes_[address];
  if (node == nullptr) node = std::make_shared<Node>(OptionsAt(options_, address));
  return node;
}

void ClusterDirectory::SetOwner(int slot, NodePtr node) {
  if (slot < 0 || slot >= kNumSlots) return;
  sync::MutexLock lock(mutex_);
  owners_[slot] = std::move(node);
}

}  // namespace mneme::redis

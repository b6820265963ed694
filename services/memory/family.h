// A family is a session, its forks and theirs: they share texts and chunks, and all that is theirs
// lies in one hash slot. This says where each value lies and what it is sealed with
// (docs/snapshots.md).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/crypto/aead.h"
#include "common/redis/command.h"
#include "services/memory/tenant_keys.h"

namespace mneme::memory {

// Returns a name that no family has.
std::string NewFamilyName();
// Returns an id that no turn has: 16 hexadecimal digits.
std::string NewTurnId();
bool IsTurnId(absl::string_view id);

// Copyable, immutable.
class Family {
 public:
  Family(std::shared_ptr<const TenantKey> key, absl::string_view tenant, std::string name);

  const std::string& tenant() const { return tenant_; }
  const std::string& name() const { return name_; }
  // Which data key it is sealed with; scripts refuse another.
  const std::string& key_id() const { return key_->id; }

  // The keys of Redis that scripts on the family take, and those on one of its sessions.
  std::vector<std::string> Keys() const;
  std::vector<std::string> Keys(absl::string_view session_id) const;
  std::string HeadKey(absl::string_view session_id) const;
  std::string TurnsKey(absl::string_view session_id) const;
  std::string BodiesKey() const;
  std::string StagedKey(absl::string_view snapshot_id) const;
  std::string ChunkKey(absl::string_view chunk_name) const;

  // Returns 32 hexadecimal digits: a chunk's name in Redis. Without the key they tell nothing of
  // the digest, nor whether two families have a chunk in common.
  std::string ChunkName(absl::string_view digest) const;
  // Returns 32 hexadecimal digits by which a turn that comes again is known.
  std::string TurnMark(absl::string_view payload) const;

  // What is sealed opens in the same place only. Each returns DATA_LOSS for anything else.
  std::string SealTitle(std::string title, absl::string_view session_id) const;
  absl::StatusOr<std::string> OpenTitle(std::string sealed, absl::string_view session_id) const;
  std::string SealText(std::string text, absl::string_view turn_id) const;
  absl::StatusOr<std::string> OpenText(std::string sealed, absl::string_view turn_id) const;
  std::string SealManifest(std::string manifest, absl::string_view turn_id) const;
  absl::StatusOr<std::string> OpenManifest(std::string sealed, absl::string_view turn_id) const;
  redis::Argument SealChunk(std::string payload, absl::string_view chunk_name) const;
  absl::StatusOr<std::string> OpenChunk(std::string sealed, absl::string_view chunk_name) const;
  // The same of a chunk's file in the disk tier.
  std::string SealFile(std::string content, absl::string_view chunk_name) const;
  absl::StatusOr<std::string> OpenFile(std::string sealed, absl::string_view chunk_name) const;

 private:
  std::string Key(absl::string_view kind, absl::string_view rest = "") const;

  std::shared_ptr<const TenantKey> key_;
  std::string tenant_;
  std::string name_;
  std::string prefix_;
  crypto::Key values_;
  crypto::Key names_;
};

}  // namespace mneme::memory

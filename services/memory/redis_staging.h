// A snapshot on its way into Redis, for a turn that is being computed.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/memory/redis_chunks.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

class RedisStaging final : public SnapshotStaging {
 public:
  // The lease in `header` was found good. `kv_bytes` is what the tenant has already. `directory`
  // and `options` must outlive the staging.
  RedisStaging(FamilyDirectory& directory, const StoreOptions& options,
               v1::StageSnapshotRequest::Header header, Family family, int64_t kv_bytes,
               absl::Time deadline);

  absl::Status Add(v1::ChunkPayload chunk) override;
  absl::StatusOr<v1::StageSnapshotResponse> Finish(snapshot::v1::Manifest manifest) override;

 private:
  absl::StatusOr<std::vector<ChunkWriter::Presence>> Ask(const std::vector<std::string>& names);

  FamilyDirectory& directory_;
  const StoreOptions& options_;
  const v1::StageSnapshotRequest::Header header_;
  const Family family_;
  const absl::Time deadline_;
  ChunkWriter writer_;
};

}  // namespace mneme::memory

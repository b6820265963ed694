// Chunks on their way into Redis and out of it: in batches, a few of them at a time, so that
// encryption, Redis and the caller's network work side by side in bounded memory.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/memory/chunk_source.h"
#include "services/memory/family.h"
#include "services/memory/family_directory.h"
#include "services/memory/session_store.h"
#include "services/memory/snapshot_check.h"
#include "services/memory/store_options.h"

namespace mneme::memory {

// Writes chunks into a family, where they expire by themselves until a turn lists them. What is
// stored already is not written again. Used by one thread at a time.
class ChunkWriter {
 public:
  // What a family has of a chunk that is to be written.
  enum class Presence {
    kNone,
    kListed,  // not in Redis, and counted in the tenant's quota: it is on disk, or lost
    kStored,  // in Redis, for at least orphan_age
  };
  // Asked once for each batch, before any of it is written: whether it may be, and what is there of
  // the chunks of these names. Called by several threads at a time.
  using Ask =
      std::function<absl::StatusOr<std::vector<Presence>>(const std::vector<std::string>& names)>;

  // `kv_bytes` is what the tenant has already, for its quota. `directory` and `options` must
  // outlive the writer.
  ChunkWriter(FamilyDirectory& directory, const StoreOptions& options, std::string tenant,
              Family family, int64_t kv_bytes, Ask ask, absl::Time deadline);
  // Waits for what still runs.
  ~ChunkWriter();

  // Takes the next chunk. An error may concern an earlier one.
  absl::Status Add(v1::ChunkPayload chunk);
  // Returns once all chunks are stored.
  absl::Status Flush();

  // What was added, with digests; complete after Flush.
  const SentChunks& sent() const { return sent_; }
  // Payload bytes that were not there before.
  int64_t new_bytes() const { return new_bytes_; }

 private:
  using Batch = std::vector<v1::ChunkPayload>;
  // What became of a batch: its chunks with digests, without payloads.
  struct Stored {
    std::vector<snapshot::v1::Chunk> chunks;
    std::vector<std::string> new_names;
    int64_t new_bytes = 0;        // that were not in Redis
    int64_t uncounted_bytes = 0;  // of these, what the tenant's quota has not counted yet
  };

  absl::StatusOr<Stored> Store(Batch batch);
  absl::Status Send();
  absl::Status Take(absl::StatusOr<Stored> stored);
  absl::Status TakeOldest();
  absl::Status Refresh();
  // Gives the room in a full Redis back at once. A fork may have listed some of the chunks since:
  // those stay.
  void Discard();
  void Discard(const std::vector<std::string>& names);

  FamilyDirectory& directory_;
  const StoreOptions& options_;
  const std::string tenant_;
  const Family family_;
  int64_t kv_bytes_;
  const Ask ask_;
  const absl::Time deadline_;
  Batch batch_;
  size_t batch_bytes_ = 0;
  SentChunks sent_;
  std::vector<std::string> new_names_;  // of chunks that this has put into Redis
  int64_t new_bytes_ = 0;
  absl::Time refreshed_;
  std::deque<std::future<absl::StatusOr<Stored>>> running_;
};

// Returns a manifest's chunks as the scripts take them: of each its name and its size, 40 digits.
std::string ChunkList(const Family& family, const snapshot::v1::Manifest& manifest);

// Sends chunks `positions` of a manifest to `sink`, in this order. Errors are those of
// ChunkSource::Read.
absl::Status FetchChunks(ChunkSource& source, const Family& family, const std::string& session_id,
                         const snapshot::v1::Manifest& manifest, const std::vector<int>& positions,
                         const FetchSink& sink, absl::Time deadline);

}  // namespace mneme::memory

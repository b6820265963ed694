// Keeps the memory of sessions in the memory service, for the engine: brings a turn's past back
// when its pages are gone, stores new entries while the turn is computed, and tells at its end what
// was stored. The engine's thread only copies between pages and bytes here; the network is the
// workers'.
//
// Whatever fails, the turn goes on: memory that can't be restored is computed from the tokens, and
// an answer that can't be stored says so in its receipt.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/memory/kv_pool.h"
#include "mneme/snapshot/v1/snapshot.pb.h"
#include "services/executor/executor_metrics.h"
#include "services/executor/memory_link.h"
#include "services/executor/sequence.h"
#include "services/executor/session_turn.h"

namespace mneme::executor {

struct SessionMemoryOptions {
  std::string model_fingerprint;
  MemoryLinkOptions link;
  // How long the last message of an answer waits for its snapshot: so long, and longer by the bytes
  // that are still to be stored.
  std::chrono::milliseconds close_timeout{2000};
  int64_t min_bytes_per_second = int64_t{20} << 20;
  // How long one message to the memory service may take before the snapshot is given up.
  std::chrono::milliseconds stall_timeout{5000};
  // Bytes of a turn that wait for the network; beyond, entries stay in their pages for now.
  int64_t max_pending_bytes = int64_t{32} << 20;
};

// Used by the engine's thread.
class SessionMemory {
 public:
  // `stub` null: nothing is stored nor restored. `metrics` must outlive this.
  SessionMemory(const SessionMemoryOptions& options,
                std::shared_ptr<memory::v1::MemoryService::StubInterface> stub,
                std::shared_ptr<EngineSignal> signal, ExecutorMetrics* metrics);

  // Begins a session's turn that has got a place in the batch. `snapshot` is the stored one of the
  // memory that the sequence has, if it is known.
  void Begin(Sequence* sequence, std::optional<StoredSnapshot> snapshot);

  // Goes on with a sequence that waits for stored memory, until `deadline`. Afterwards
  // is_restoring() says whether it still waits. RESOURCE_EXHAUSTED: too few pages are free.
  absl::Status Restore(Sequence* sequence, std::chrono::steady_clock::time_point deadline);

  // Hands full chunks of new entries to the network, at most about `max_bytes`; returns how many
  // bytes it has handed over.
  int64_t Export(Sequence* sequence, int64_t max_bytes);

  // Goes on with the end of a turn whose answer is complete: the rest of the entries, the manifest,
  // the answer of the memory service. Returns true when it is over, well or not; `sequence->end` is
  // then complete.
  bool Close(Sequence* sequence, int64_t max_bytes);

  // Ends the storing of a turn that is at Close: what it stores is not wanted any more.
  static void Abandon(Sequence* sequence, const absl::Status& why);

  // Cuts the turn back to the tokens that the sequence has now: an answer was ended early.
  void CutBack(Sequence* sequence);

  // What the memory of a turn that leaves the batch has in the store.
  static std::optional<StoredSnapshot> SnapshotOf(const Sequence& sequence);

  void Forget(const std::string& tenant, const std::string& session_id);

 private:
  snapshot::v1::Lineage LineageOf(const memory::MemoryPolicy& policy) const;
  void StartFetch(Sequence* sequence);
  void EndFetch(Sequence* sequence);
  void FailRestore(Sequence* sequence, const absl::Status& status);
  void UseSnapshot(Sequence* sequence, StoredSnapshot snapshot);
  // Begins the turn's list of chunks with those of its base that it still has.
  static void ListStored(Sequence* sequence);
  // Whether a turn that could not be stored is sent, or will soon be sent, once more.
  bool MayRestage(Sequence* sequence, std::chrono::steady_clock::time_point now);
  snapshot::v1::Encoding EncodingOf(const Sequence& sequence) const;
  // When the answer's last message goes out at the latest; the answer is complete now.
  std::chrono::steady_clock::time_point CloseDeadline(const Sequence& sequence) const;
  void ExportUpTo(Sequence* sequence, int64_t end, int64_t max_bytes, int64_t* exported_bytes);

  const SessionMemoryOptions options_;
  ExecutorMetrics* const metrics_;
  std::unique_ptr<MemoryLink> link_;
};

}  // namespace mneme::executor

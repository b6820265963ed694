// What the engine knows of a session's turn besides its tokens: where its memory comes from and how
// far it has been stored. Plain data; what happens to it is session_memory.h's affair.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mneme/snapshot/v1/snapshot.pb.h"
#include "services/executor/fetch.h"
#include "services/executor/staging.h"
#include "services/executor/stored_snapshot.h"

namespace mneme::executor {

// Engine thread only. Lets go of the network when destroyed.
struct SessionTurn {
  SessionTurn() = default;
  SessionTurn(const SessionTurn&) = delete;
  SessionTurn& operator=(const SessionTurn&) = delete;
  ~SessionTurn() {
    if (fetch != nullptr) fetch->Cancel();
    if (staging != nullptr) staging->Cancel(absl::CancelledError("the turn has ended"));
  }

  // The stored memory that the turn began with, if any.
  std::optional<StoredSnapshot> base;

  // While stored memory is on its way.
  std::shared_ptr<Fetch> fetch;
  std::chrono::steady_clock::time_point fetch_started;
  bool is_importing = false;  // the sequence's memory is being written and means nothing yet
  int num_imported = 0;       // chunks

  // Towards the store.
  std::shared_ptr<Staging> staging;         // null: the turn is not stored
  std::string not_stored_reason;            // why, or why it has failed
  std::vector<snapshot::v1::Chunk> chunks;  // the manifest's so far, digests perhaps missing
  int64_t exported_entries = 0;             // per head, that they cover
  bool is_manifest_sent = false;
  int64_t lost_bytes = 0;      // sent over streams that broke
  std::string broken_off_for;  // why the last of those broke
  // When what broke is sent again; set from then until it is.
  std::optional<std::chrono::steady_clock::time_point> restage_at;
  std::optional<std::chrono::steady_clock::time_point> ended;  // the answer, when it was complete
  std::chrono::steady_clock::time_point close_deadline;        // with `ended`

  // For the receipt.
  int64_t restored_tokens = 0;
  std::string tier;  // of the restored memory
  int64_t fetched_bytes = 0;
  double restore_ms = 0;
};

}  // namespace mneme::executor

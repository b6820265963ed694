// What the scripts answer, read into messages of the contract.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/redis/reply.h"
#include "common/status/status_macros.h"
#include "mneme/memory/v1/memory.pb.h"
#include "services/memory/family.h"
#include "services/memory/session_history.h"

namespace mneme::memory {

// DATA_LOSS: what Redis holds of a session cannot be.
absl::Status Malformed(absl::string_view session_id);

// The head's fields that make a Session, for HMGET, in the order in which ParseSession takes them.
const std::vector<std::string>& SessionFields();
absl::StatusOr<v1::Session> ParseSession(const Family& family, const std::string& session_id,
                                         const redis::Reply& fields);

// What a turn's record (redis_scripts.h) says.
struct TurnRecord {
  int64_t committed_ms = 0;
  int64_t num_tokens = 0;  // of the session's token log after the turn
  uint64_t snapshot_tokens = 0;
  int64_t snapshot_bytes = 0;
  std::string request_id;
};
absl::StatusOr<TurnRecord> ParseRecord(const std::string& session_id, absl::string_view record);

absl::StatusOr<v1::Turn> ParseTurn(const Family& family, const std::string& session_id,
                                   const std::string& turn_id, const std::string& sealed);

absl::StatusOr<snapshot::v1::Manifest> ParseManifest(const Family& family,
                                                     const std::string& session_id,
                                                     const std::string& turn_id,
                                                     const std::string& sealed);

// Adds all turns of a session to a response; they must reach from version 1 to the head.
template <typename Response>
absl::Status AppendTurns(const Family& family, const redis::Reply& ids, const redis::Reply& texts,
                         HistoryParts parts, Response* response) {
  const v1::Session& session = response->session();
  if (ids.elements().size() != session.version() || texts.elements().size() != session.version()) {
    return Malformed(session.session_id());
  }
  for (size_t i = 0; i < ids.elements().size(); ++i) {
    ASSIGN_OR_RETURN(v1::Turn turn,
                     ParseTurn(family, session.session_id(), ids.elements()[i].text(),
                               texts.elements()[i].text()));
    AppendTurn(std::move(turn), parts, response);
  }
  return absl::OkStatus();
}

}  // namespace mneme::memory

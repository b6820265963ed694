// Turns put together: what a session's messages and token log are.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "mneme/memory/v1/memory.pb.h"

namespace mneme::memory {

// What a reader wants of a session's turns.
struct HistoryParts {
  bool messages = false;
  bool tokens = false;
};

// Adds the next turn to a response that has `messages` and `token_ids`. A turn that replaces the
// token log empties it first.
template <typename Response>
void AppendTurn(v1::Turn&& turn, HistoryParts parts, Response* response) {
  if (parts.messages) {
    for (auto& message : *turn.mutable_messages()) *response->add_messages() = std::move(message);
  }
  if (parts.tokens) {
    if (turn.replaces_tokens()) response->clear_token_ids();
    response->mutable_token_ids()->MergeFrom(turn.token_ids());
  }
}

// Returns the bytes of what the caller chose of a turn: all but what the service sets. Two turns
// are the same when these are.
std::string TurnPayload(const v1::Turn& turn);

// Where a page of a listing ends: the order of its last session. Orders are unique in a tenant, so
// a session that is used between two pages moves to the front and shifts nothing.
std::string EncodePageToken(int64_t order);
// INVALID_ARGUMENT: the token is not one of ours.
absl::StatusOr<int64_t> DecodePageToken(absl::string_view token);

}  // namespace mneme::memory

#include "services/memory/session_history.h"

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status/annotate.h"

namespace mneme::memory {
namespace {

constexpr absl::string_view kPageTokenPrefix = "sessions-1:";

}  // namespace

std::string TurnPayload(const v1::Turn& turn) {
  v1::Turn chosen = turn;
  chosen.clear_version();
  chosen.clear_committed_unix_ms();
  chosen.clear_snapshot_tokens();
  return chosen.SerializeAsString();
}

std::string EncodePageToken(int64_t order) {
  return absl::WebSafeBase64Escape(absl::StrCat(kPageTokenPrefix, order));
}

absl::StatusOr<int64_t> DecodePageToken(absl::string_view token) {
  std::string text;
  int64_t order = 0;
  absl::string_view rest;
  if (absl::WebSafeBase64Unescape(token, &text) &&
      (rest = text, absl::ConsumePrefix(&rest, kPageTokenPrefix)) &&
      absl::SimpleAtoi(rest, &order)) {
    return order;
  }
  return status::InvalidField("page_token", "is not one of a previous page");
}

}  // namespace mneme::memory

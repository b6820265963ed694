#include "services/memory/redis_records.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace mneme::memory {
namespace {

using redis::Reply;

// Positions in SessionFields.
enum Field {
  kVersion,
  kModel,
  kCreated,
  kUsed,
  kMessages,
  kTokens,
  kTitle,
  kPolicy,
  kTtl,
  kPinned,
  kParent,
  kParentVersion,
  kKvBytes,
  kNumFields
};

// A number that a head may lack.
absl::StatusOr<int64_t> NumberOr0(const Reply& field) {
  return field.is_nil() ? absl::StatusOr<int64_t>(0) : field.Integer();
}

}  // namespace

absl::Status Malformed(absl::string_view session_id) {
  return absl::DataLossError(absl::StrCat(
      "what Redis holds of the session is damaged, was a key evicted or written by hand? "
      "maxmemory-policy must be noeviction: ",
      session_id));
}

const std::vector<std::string>& SessionFields() {
  static const auto* const fields = new std::vector<std::string>{
      "version", "model", "created_ms", "used_ms", "messages",       "tokens",  "title",
      "policy",  "ttl_s", "pinned",     "parent",  "parent_version", "kv_bytes"};
  return *fields;
}

absl::StatusOr<v1::Session> ParseSession(const Family& family, const std::string& session_id,
                                         const Reply& reply) {
  const std::vector<Reply>& fields = reply.elements();
  if (fields.size() != kNumFields) return Malformed(session_id);
  v1::Session session;
  session.set_session_id(session_id);
  session.set_model(fields[kModel].text());
  session.set_parent_session(fields[kParent].text());
  int64_t numbers[kNumFields];
  for (const Field field : {kVersion, kCreated, kUsed, kMessages, kTokens, kTtl}) {
    const absl::StatusOr<int64_t> number = fields[field].Integer();
    if (!number.ok()) return Malformed(session_id);
    numbers[field] = *number;
  }
  for (const Field field : {kPinned, kParentVersion, kKvBytes}) {
    const absl::StatusOr<int64_t> number = NumberOr0(fields[field]);
    if (!number.ok()) return Malformed(session_id);
    numbers[field] = *number;
  }
  session.set_version(numbers[kVersion]);
  session.set_created_unix_ms(numbers[kCreated]);
  session.set_used_unix_ms(numbers[kUsed]);
  session.set_num_messages(static_cast<int32_t>(numbers[kMessages]));
  session.set_num_tokens(numbers[kTokens]);
  session.set_ttl_seconds(numbers[kTtl]);
  session.set_pinned(numbers[kPinned] != 0);
  session.set_parent_session_version(numbers[kParentVersion]);
  session.set_kv_bytes(numbers[kKvBytes]);
  if (!fields[kTitle].text().empty()) {
    absl::StatusOr<std::string> title = family.OpenTitle(fields[kTitle].text(), session_id);
    if (!title.ok()) return Malformed(session_id);
    session.set_title(*std::move(title));
  }
  if (!fields[kPolicy].text().empty() &&
      !session.mutable_memory_policy()->ParseFromString(fields[kPolicy].text())) {
    return Malformed(session_id);
  }
  return session;
}

absl::StatusOr<TurnRecord> ParseRecord(const std::string& session_id, absl::string_view record) {
  const std::vector<absl::string_view> words = absl::StrSplit(record, ' ');
  TurnRecord parsed;
  if (words.size() != 9 || !absl::SimpleAtoi(words[0], &parsed.committed_ms) ||
      !absl::SimpleAtoi(words[4], &parsed.num_tokens) ||
      !absl::SimpleAtoi(words[6], &parsed.snapshot_tokens) ||
      !absl::SimpleAtoi(words[7], &parsed.snapshot_bytes)) {
    return Malformed(session_id);
  }
  parsed.request_id = std::string(words[8]);
  return parsed;
}

absl::StatusOr<v1::Turn> ParseTurn(const Family& family, const std::string& session_id,
                                   const std::string& turn_id, const std::string& sealed) {
  const absl::StatusOr<std::string> text = family.OpenText(sealed, turn_id);
  v1::Turn turn;
  if (!text.ok() || !turn.ParseFromString(*text)) return Malformed(session_id);
  return turn;
}

absl::StatusOr<snapshot::v1::Manifest> ParseManifest(const Family& family,
                                                     const std::string& session_id,
                                                     const std::string& turn_id,
                                                     const std::string& sealed) {
  const absl::StatusOr<std::string> bytes = family.OpenManifest(sealed, turn_id);
  snapshot::v1::Manifest manifest;
  if (!bytes.ok() || !manifest.ParseFromString(*bytes)) return Malformed(session_id);
  return manifest;
}

}  // namespace mneme::memory

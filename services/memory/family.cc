#include "services/memory/family.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/crypto/sha256.h"

namespace mneme::memory {
namespace {

constexpr size_t kFamilyNameBytes = 10;
constexpr size_t kTurnIdBytes = 8;
constexpr size_t kNameBytes = 16;

}  // namespace

std::string NewFamilyName() {
  return absl::BytesToHexString(crypto::RandomBytes(kFamilyNameBytes));
}

std::string NewTurnId() { return absl::BytesToHexString(crypto::RandomBytes(kTurnIdBytes)); }

bool IsTurnId(absl::string_view id) {
  return id.size() == 2 * kTurnIdBytes &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

// The braces make Redis Cluster keep a family's keys together. '/' cannot be in an identifier, so
// that no tenant can name another's key.
Family::Family(std::shared_ptr<const TenantKey> key, absl::string_view tenant, std::string name)
    : key_(std::move(key)),
      tenant_(tenant),
      name_(std::move(name)),
      prefix_(absl::StrCat("mneme:2:{", tenant, "/", name_, "}:")),
      values_(key_->key.Derive(absl::StrCat("values of family ", name_))),
      names_(key_->key.Derive(absl::StrCat("names of family ", name_))) {}

std::string Family::Key(absl::string_view kind, absl::string_view rest) const {
  return absl::StrCat(prefix_, kind, rest);
}

std::vector<std::string> Family::Keys() const { return {Key("f"), Key("b")}; }

std::vector<std::string> Family::Keys(absl::string_view session_id) const {
  return {Key("f"), Key("b"), HeadKey(session_id), TurnsKey(session_id), Key("r:", session_id)};
}

std::string Family::HeadKey(absl::string_view session_id) const { return Key("s:", session_id); }
std::string Family::TurnsKey(absl::string_view session_id) const { return Key("v:", session_id); }
std::string Family::BodiesKey() const { return Key("b"); }
std::string Family::StagedKey(absl::string_view snapshot_id) const {
  return Key("p:", snapshot_id);
}
std::string Family::ChunkKey(absl::string_view chunk_name) const { return Key("c:", chunk_name); }

std::string Family::ChunkName(absl::string_view digest) const {
  return absl::BytesToHexString(
      crypto::Mac(names_, absl::StrCat("chunk ", digest)).substr(0, kNameBytes));
}

std::string Family::TurnMark(absl::string_view payload) const {
  return absl::BytesToHexString(
      crypto::Mac(names_, absl::StrCat("turn ", payload)).substr(0, kNameBytes));
}

std::string Family::SealTitle(std::string title, absl::string_view session_id) const {
  return crypto::Seal(values_, std::move(title), absl::StrCat(HeadKey(session_id), "/title"));
}

absl::StatusOr<std::string> Family::OpenTitle(std::string sealed,
                                              absl::string_view session_id) const {
  return crypto::Open(values_, std::move(sealed), absl::StrCat(HeadKey(session_id), "/title"));
}

std::string Family::SealText(std::string text, absl::string_view turn_id) const {
  return crypto::Seal(values_, std::move(text), Key("b/t", turn_id));
}

absl::StatusOr<std::string> Family::OpenText(std::string sealed, absl::string_view turn_id) const {
  return crypto::Open(values_, std::move(sealed), Key("b/t", turn_id));
}

std::string Family::SealManifest(std::string manifest, absl::string_view turn_id) const {
  return crypto::Seal(values_, std::move(manifest), Key("b/m", turn_id));
}

absl::StatusOr<std::string> Family::OpenManifest(std::string sealed,
                                                 absl::string_view turn_id) const {
  return crypto::Open(values_, std::move(sealed), Key("b/m", turn_id));
}

redis::Argument Family::SealChunk(std::string payload, absl::string_view chunk_name) const {
  std::string seal = crypto::SealInPlace(values_, &payload, ChunkKey(chunk_name));
  return redis::Argument::Joined(std::move(payload), std::move(seal));
}

absl::StatusOr<std::string> Family::OpenChunk(std::string sealed,
                                              absl::string_view chunk_name) const {
  return crypto::Open(values_, std::move(sealed), ChunkKey(chunk_name));
}

std::string Family::SealFile(std::string content, absl::string_view chunk_name) const {
  return crypto::Seal(values_, std::move(content), Key("d:", chunk_name));
}

absl::StatusOr<std::string> Family::OpenFile(std::string sealed,
                                             absl::string_view chunk_name) const {
  return crypto::Open(values_, std::move(sealed), Key("d:", chunk_name));
}

}  // namespace mneme::memory

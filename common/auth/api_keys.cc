#include "common/auth/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "common/log/log.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/trace/request_context.h"
#include "nlohmann/json.hpp"

namespace mneme::auth {
namespace {

using Json = nlohmann::json;

constexpr absl::string_view kPrefix = "mk-";
constexpr size_t kSecretBytes = 24;
constexpr size_t kSaltBytes = 16;
constexpr size_t kHashBytes = 32;
constexpr size_t kMaxKeyBytes = 256;
constexpr absl::Duration kCheckInterval = absl::Seconds(1);

std::string RandomHexBytes(size_t count) {
  std::string bytes(count, '\0');
  // A machine without randomness must not hand out keys.
  if (RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()), static_cast<int>(count)) != 1) {
    log::Fatal("the system gives no random bytes");
  }
  return absl::BytesToHexString(bytes);
}

bool IsHex(absl::string_view text, size_t bytes) {
  return text.size() == bytes * 2 && std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return absl::ascii_isxdigit(c);
         });
}

bool IsKeyId(absl::string_view id) {
  return !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '_' || c == '.';
  });
}

std::string SlowHash(absl::string_view key, absl::string_view salt_hex, int32_t iterations) {
  const std::string salt = absl::HexStringToBytes(salt_hex);
  std::string hash(kHashBytes, '\0');
  PKCS5_PBKDF2_HMAC(key.data(), static_cast<int>(key.size()),
                    reinterpret_cast<const unsigned char*>(salt.data()),
                    static_cast<int>(salt.size()), iterations, EVP_sha256(), kHashBytes,
                    reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

std::string QuickHash(absl::string_view key) {
  std::string hash(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

// Returns the id inside "mk-<id>-<secret>", "" where it has not that form.
std::string IdOf(absl::string_view key) {
  if (key.size() > kMaxKeyBytes || key.substr(0, kPrefix.size()) != kPrefix) return "";
  key.remove_prefix(kPrefix.size());
  const size_t dash = key.rfind('-');
  if (dash == absl::string_view::npos || !IsHex(key.substr(dash + 1), kSecretBytes)) return "";
  return std::string(key.substr(0, dash));
}

absl::Status ReadString(const Json& object, const char* name, std::string* value) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " must be a string"));
  }
  *value = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadBool(const Json& object, const char* name, bool* value) {
  const auto found = object.find(name);
  if (found == object.end()) return absl::OkStatus();
  if (!found->is_boolean()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " must be true or false"));
  }
  *value = found->get<bool>();
  return absl::OkStatus();
}

template <typename T>
absl::Status ReadCount(const Json& object, const char* name, std::optional<T>* value) {
  const auto found = object.find(name);
  if (found == object.end() || found->is_null()) return absl::OkStatus();
  if (!found->is_number_integer() || found->get<int64_t>() < 0 ||
      found->get<int64_t>() > std::numeric_limits<T>::max()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " must be a number from 0 on"));
  }
  *value = static_cast<T>(found->get<int64_t>());
  return absl::OkStatus();
}

absl::Status ReadEntry(const Json& object, KeyEntry* entry) {
  if (!object.is_object()) return absl::InvalidArgumentError("is not an object");
  RETURN_IF_ERROR(ReadString(object, "id", &entry->id));
  RETURN_IF_ERROR(ReadString(object, "tenant", &entry->tenant));
  RETURN_IF_ERROR(ReadString(object, "salt", &entry->salt));
  RETURN_IF_ERROR(ReadString(object, "hash", &entry->hash));
  if (!IsKeyId(entry->id)) return absl::InvalidArgumentError("id is malformed");
  if (!trace::IsIdentifier(entry->tenant)) {
    return absl::InvalidArgumentError("tenant is malformed");
  }
  if (entry->salt.empty() || !IsHex(entry->salt, entry->salt.size() / 2)) {
    return absl::InvalidArgumentError("salt is not hexadecimal");
  }
  if (!IsHex(entry->hash, kHashBytes)) {
    return absl::InvalidArgumentError("hash is not 32 hexadecimal bytes");
  }
  std::optional<int32_t> iterations;
  RETURN_IF_ERROR(ReadCount(object, "iterations", &iterations));
  entry->iterations = iterations.value_or(entry->iterations);
  if (entry->iterations < 1 || entry->iterations > 10'000'000) {
    return absl::InvalidArgumentError("iterations must lie in 1..10000000");
  }
  RETURN_IF_ERROR(ReadBool(object, "disabled", &entry->disabled));
  RETURN_IF_ERROR(ReadBool(object, "admin", &entry->admin));
  if (const auto limits = object.find("limits"); limits != object.end()) {
    if (!limits->is_object()) return absl::InvalidArgumentError("limits must be an object");
    RETURN_IF_ERROR(ReadCount(*limits, "max_concurrent", &entry->limits.max_concurrent));
    RETURN_IF_ERROR(ReadCount(*limits, "tokens_per_minute", &entry->limits.tokens_per_minute));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<NewKey> GenerateKey(absl::string_view id, absl::string_view tenant) {
  NewKey made;
  made.entry.id = id.empty() ? RandomHexBytes(6) : std::string(id);
  made.entry.tenant = std::string(tenant);
  if (!IsKeyId(made.entry.id)) {
    return status::InvalidField("id", "a key's id has 1 to 64 letters, digits, dots, underscores");
  }
  if (!trace::IsIdentifier(tenant)) {
    return status::InvalidField("tenant", "must match [A-Za-z0-9_.:-]{1,128}");
  }
  made.key = absl::StrCat(kPrefix, made.entry.id, "-", RandomHexBytes(kSecretBytes));
  made.entry.salt = RandomHexBytes(kSaltBytes);
  made.entry.hash =
      absl::BytesToHexString(SlowHash(made.key, made.entry.salt, made.entry.iterations));
  return made;
}

bool Verify(absl::string_view key, const KeyEntry& entry) {
  const std::string expected = absl::HexStringToBytes(entry.hash);
  const std::string actual = SlowHash(key, entry.salt, entry.iterations);
  return expected.size() == actual.size() &&
         CRYPTO_memcmp(expected.data(), actual.data(), actual.size()) == 0;
}

absl::StatusOr<std::vector<KeyEntry>> ParseKeys(absl::string_view json) {
  const Json root = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return absl::InvalidArgumentError("key file is not JSON");
  const auto list = root.is_object() ? root.find("keys") : root.end();
  if (!root.is_object() || list == root.end() || !list->is_array()) {
    return absl::InvalidArgumentError("key file has no list \"keys\"");
  }
  std::vector<KeyEntry> entries;
  std::unordered_set<std::string> ids;
  for (const Json& object : *list) {
    KeyEntry entry;
    RETURN_IF_ERROR(
        status::Annotate(ReadEntry(object, &entry), absl::StrCat("keys[", entries.size(), "]")));
    if (!ids.insert(entry.id).second) {
      return absl::InvalidArgumentError(absl::StrCat("key id appears twice: ", entry.id));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string FormatKeys(const std::vector<KeyEntry>& entries) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const KeyEntry& entry : entries) {
    nlohmann::ordered_json object = {{"id", entry.id},
                                     {"tenant", entry.tenant},
                                     {"salt", entry.salt},
                                     {"hash", entry.hash},
                                     {"iterations", entry.iterations}};
    if (entry.disabled) object["disabled"] = true;
    if (entry.admin) object["admin"] = true;
    if (entry.limits.max_concurrent) {
      object["limits"]["max_concurrent"] = *entry.limits.max_concurrent;
    }
    if (entry.limits.tokens_per_minute) {
      object["limits"]["tokens_per_minute"] = *entry.limits.tokens_per_minute;
    }
    list.push_back(std::move(object));
  }
  const nlohmann::ordered_json root = {{"keys", std::move(list)}};
  return root.dump(2) + "\n";
}

absl::StatusOr<std::vector<KeyEntry>> LoadKeys(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string json, config::ReadFile(path));
  absl::StatusOr<std::vector<KeyEntry>> entries = ParseKeys(json);
  if (!entries.ok()) return status::Annotate(entries.status(), path);
  return entries;
}

absl::Status SaveKeys(const std::string& path, const std::vector<KeyEntry>& entries) {
  return config::WriteFileAtomically(path, FormatKeys(entries), 0600);
}

absl::StatusOr<std::unique_ptr<KeyStore>> KeyStore::Open(const std::string& path,
                                                         const clock::Clock& clock) {
  auto store = std::unique_ptr<KeyStore>(new KeyStore(path, clock));
  const Stamp stamp = StampOf(path);
  ASSIGN_OR_RETURN(std::vector<KeyEntry> entries, LoadKeys(path));
  sync::MutexLock lock(store->mutex_);
  store->stamp_ = stamp;
  store->checked_ = clock.Now();
  store->Use(std::move(entries));
  return store;
}

KeyStore::Stamp KeyStore::StampOf(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return {};
  return {static_cast<int64_t>(info.st_ino), static_cast<int64_t>(info.st_size),
          info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec};
}

void KeyStore::Use(std::vector<KeyEntry> entries) {
  entries_.clear();
  verified_.clear();
  ++generation_;
  for (KeyEntry& entry : entries) entries_.emplace(entry.id, std::move(entry));
}

void KeyStore::ReloadIfChanged() {
  const absl::Time now = clock_.Now();
  Stamp known;
  {
    sync::MutexLock lock(mutex_);
    if (now - checked_ < kCheckInterval && now >= checked_) return;
    checked_ = now;
    known = stamp_;
  }
  const Stamp stamp = StampOf(path_);
  if (stamp == known) return;
  absl::StatusOr<std::vector<KeyEntry>> entries = LoadKeys(path_);
  sync::MutexLock lock(mutex_);
  stamp_ = stamp;
  if (!entries.ok()) {
    log::Error("key file cannot be read again, the old keys stay in force",
               {{"error", std::string(entries.status().message())}});
    return;
  }
  Use(*std::move(entries));
  log::Info("key file read again", {{"keys", entries_.size()}});
}

absl::StatusOr<Identity> KeyStore::Authenticate(absl::string_view key) {
  const absl::Status refused =
      key.empty() ? absl::UnauthenticatedError(
                        "no API key was given: send the header \"Authorization: Bearer KEY\"")
                  : absl::UnauthenticatedError("the API key is not valid");
  const std::string id = IdOf(key);
  if (id.empty()) return refused;
  ReloadIfChanged();
  const std::string digest = QuickHash(key);
  KeyEntry entry;
  uint64_t generation = 0;
  bool verified = false;
  {
    sync::MutexLock lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end() || found->second.disabled) return refused;
    entry = found->second;
    generation = generation_;
    const auto known = verified_.find(digest);
    verified = known != verified_.end() && known->second == id;
  }
  if (!verified) {
    sync::MutexLock hashing(hashing_);
    if (!Verify(key, entry)) return refused;
    sync::MutexLock lock(mutex_);
    if (generation == generation_) verified_[digest] = id;
  }
  return Identity{std::move(entry.id), std::move(entry.tenant), entry.admin, entry.limits};
}

}  // namespace mneme::auth

// API keys: how they are made, what the key file holds, and who a presented key belongs to.
//
// A key is "mk-<id>-<secret>", the secret 48 hexadecimal digits of 192 random bits. The file never
// holds a key: only, by id, a salt and PBKDF2-HMAC-SHA256(key, salt). It looks like this:
//
//   {"keys": [{"id": "ci", "tenant": "acme", "salt": "<hex>", "hash": "<hex>",
//              "iterations": 100000, "disabled": false, "admin": false,
//              "limits": {"max_concurrent": 8, "tokens_per_minute": 100000}}]}
//
// `mneme keys` writes the file, the gateway reads it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock/clock.h"
#include "common/sync/mutex.h"

namespace mneme::auth {

// What a key may use. Absent: the server's default; 0: no limit.
struct KeyLimits {
  std::optional<int32_t> max_concurrent;     // requests at a time
  std::optional<int64_t> tokens_per_minute;  // prompt and completion together
};

// One line of the key file.
struct KeyEntry {
  std::string id;      // [A-Za-z0-9_.]{1,64}
  std::string tenant;  // whom the key speaks for: [A-Za-z0-9_.:-]{1,128}
  std::string salt;    // hexadecimal
  std::string hash;    // hexadecimal, of the whole key
  int32_t iterations = 100'000;
  bool disabled = false;
  bool admin = false;  // may do what concerns other tenants
  KeyLimits limits;
};

// A key just made: shown once to its owner, never stored.
struct NewKey {
  std::string key;
  KeyEntry entry;
};

// Makes a key. INVALID_ARGUMENT: a malformed id or tenant. An empty id is made up.
absl::StatusOr<NewKey> GenerateKey(absl::string_view id, absl::string_view tenant);

// Returns whether `key` is the one of `entry`, in a time that does not depend on how much of it is
// right. Takes some 20 ms on purpose.
bool Verify(absl::string_view key, const KeyEntry& entry);

// Reads and writes the file's text. INVALID_ARGUMENT names the entry and the field that is wrong.
absl::StatusOr<std::vector<KeyEntry>> ParseKeys(absl::string_view json);
std::string FormatKeys(const std::vector<KeyEntry>& entries);

// Reads the file; one that does not exist is NOT_FOUND.
absl::StatusOr<std::vector<KeyEntry>> LoadKeys(const std::string& path);
// Replaces the file whole, readable by its owner only.
absl::Status SaveKeys(const std::string& path, const std::vector<KeyEntry>& entries);

// Who presented a key.
struct Identity {
  std::string key_id;
  std::string tenant;
  bool admin = false;
  KeyLimits limits;
};

// The key file as the gateway uses it: a key is hashed the slow way once, later requests with it
// cost one SHA-256; the file is read again when it changes (a broken one leaves the old keys in
// force). Thread-safe.
class KeyStore {
 public:
  // `clock` must outlive the store.
  static absl::StatusOr<std::unique_ptr<KeyStore>> Open(const std::string& path,
                                                        const clock::Clock& clock);

  // Returns whose key it is. UNAUTHENTICATED: none, malformed, unknown, wrong or disabled; which of
  // them is not told apart.
  absl::StatusOr<Identity> Authenticate(absl::string_view key);

 private:
  // Tells one state of the file from another without reading it.
  struct Stamp {
    int64_t inode = 0;
    int64_t size = 0;
    int64_t changed_ns = 0;
    bool operator==(const Stamp&) const = default;
  };

  KeyStore(std::string path, const clock::Clock& clock) : path_(std::move(path)), clock_(clock) {}
  static Stamp StampOf(const std::string& path);
  void ReloadIfChanged();
  void Use(std::vector<KeyEntry> entries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string path_;
  const clock::Clock& clock_;
  sync::Mutex hashing_;  // one slow hash at a time: guessing cannot take every core
  sync::Mutex mutex_;
  std::unordered_map<std::string, KeyEntry> entries_ ABSL_GUARDED_BY(mutex_);  // by id
  // SHA-256 of keys that were verified -> id.
  std::unordered_map<std::string, std::string> verified_ ABSL_GUARDED_BY(mutex_);
  Stamp stamp_ ABSL_GUARDED_BY(mutex_);
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time checked_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace mneme::auth

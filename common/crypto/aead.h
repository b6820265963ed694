// Values that only who has the key can read or make: AES-256-GCM by OpenSSL.
//
//   std::string sealed = Seal(key, std::move(text), "where it will lie");
//   ASSIGN_OR_RETURN(text, Open(key, std::move(sealed), "where it lies"));
#pragma once

#include <array>
#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme::crypto {

inline constexpr size_t kKeyBytes = 32;
// How much longer a sealed text is: a nonce, a tag, a version.
inline constexpr size_t kSealBytes = 12 + 16 + 1;

// 256 secret bits. Wiped from memory by the destructor.
class Key {
 public:
  static Key Random();
  // `bytes` are kKeyBytes.
  static Key FromBytes(absl::string_view bytes);
  Key(const Key&) = default;
  Key& operator=(const Key&) = default;
  ~Key();

  // Returns the key of one purpose: HKDF-SHA256's expansion (RFC 5869, 2.3), which a random key
  // needs no extraction for. Keys of different purposes tell nothing of each other.
  Key Derive(absl::string_view purpose) const;

  const std::array<unsigned char, kKeyBytes>& bytes() const { return bytes_; }
  absl::string_view view() const {
    return absl::string_view(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
  }

 private:
  Key() = default;

  std::array<unsigned char, kKeyBytes> bytes_;
};

// Returns `n` random bytes that nobody can predict.
std::string RandomBytes(size_t n);

// Encrypts `plaintext` where it lies and appends nonce, tag and version. `place` is not stored:
// Open must be given the same. The nonce is random; one key is good for 2^32 texts.
std::string Seal(const Key& key, std::string plaintext, absl::string_view place);

// The same of a large text, for who can do without it in one piece: encrypts `text` where it lies
// and returns the kSealBytes that belong behind it.
std::string SealInPlace(const Key& key, std::string* text, absl::string_view place);

// Returns what was sealed, decrypted where it lies. DATA_LOSS: other key, other place, or a changed
// byte; which of these cannot be told.
absl::StatusOr<std::string> Open(const Key& key, std::string sealed, absl::string_view place);

}  // namespace mneme::crypto

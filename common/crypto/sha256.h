// SHA-256, plain and keyed.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "common/crypto/aead.h"

namespace mneme::crypto {

inline constexpr size_t kSha256Bytes = 32;

// Returns the 32 bytes of the SHA-256 of `bytes`.
std::string Sha256(absl::string_view bytes);

// Returns the 32 bytes of HMAC-SHA256: a digest that nobody without the key can make, so that it
// tells them nothing of short or guessable texts.
std::string Mac(const Key& key, absl::string_view bytes);

// Sums what comes in pieces. Used by one thread at a time.
class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(const Sha256Stream&) = delete;
  Sha256Stream& operator=(const Sha256Stream&) = delete;

  void Add(absl::string_view bytes);
  // Returns the 32 bytes; nothing can be added afterwards.
  std::string Finish();

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace mneme::crypto

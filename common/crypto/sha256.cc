#include "common/crypto/sha256.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "common/log/log.h"

namespace mneme::crypto {
namespace {

unsigned char* Bytes(std::string& text) { return reinterpret_cast<unsigned char*>(text.data()); }

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// Found once: OpenSSL looks an algorithm up by its name at every use otherwise.
const EVP_MD* Algorithm() {
  static const EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return algorithm;
}

}  // namespace

std::string Sha256(absl::string_view bytes) {
  std::string digest(kSha256Bytes, '\0');
  if (EVP_Digest(bytes.data(), bytes.size(), Bytes(digest), nullptr, Algorithm(), nullptr) != 1) {
    log::Fatal("SHA-256 failed");
  }
  return digest;
}

std::string Mac(const Key& key, absl::string_view bytes) {
  std::string digest(kSha256Bytes, '\0');
  unsigned int size = 0;
  if (HMAC(Algorithm(), key.bytes().data(), static_cast<int>(key.bytes().size()), Bytes(bytes),
           bytes.size(), Bytes(digest), &size) == nullptr) {
    log::Fatal("HMAC-SHA256 failed");
  }
  return digest;
}

struct Sha256Stream::State {
  ~State() { EVP_MD_CTX_free(context); }
  EVP_MD_CTX* const context = EVP_MD_CTX_new();
};

Sha256Stream::Sha256Stream() : state_(std::make_unique<State>()) {
  if (EVP_DigestInit_ex(state_->context, Algorithm(), nullptr) != 1) log::Fatal("SHA-256 failed");
}

Sha256Stream::~Sha256Stream() = default;

void Sha256Stream::Add(absl::string_view bytes) {
  if (EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) != 1) {
    log::Fatal("SHA-256 failed");
  }
}

std::string Sha256Stream::Finish() {
  std::string digest(kSha256Bytes, '\0');
  if (EVP_DigestFinal_ex(state_->context, Bytes(digest), nullptr) != 1) {
    log::Fatal("SHA-256 failed");
  }
  return digest;
}

}  // namespace mneme::crypto

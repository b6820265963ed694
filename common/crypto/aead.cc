#include "common/crypto/aead.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crypto/sha256.h"
#include "common/log/log.h"

namespace mneme::crypto {
namespace {

constexpr size_t kNonceBytes = 12;
constexpr size_t kTagBytes = 16;
constexpr char kVersion = 1;
static_assert(kSealBytes == kNonceBytes + kTagBytes + 1);

unsigned char* Bytes(char* text) { return reinterpret_cast<unsigned char*>(text); }

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

struct ContextDeleter {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};

// This thread's context, with the cipher chosen: a key and a nonce are all that a text adds.
EVP_CIPHER_CTX* Context() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  thread_local std::unique_ptr<EVP_CIPHER_CTX, ContextDeleter> context;
  if (context == nullptr) {
    context.reset(EVP_CIPHER_CTX_new());
    if (EVP_CipherInit_ex2(context.get(), cipher, nullptr, nullptr, 1, nullptr) != 1) {
      log::Fatal("AES-256-GCM is not to be had from OpenSSL");
    }
  }
  return context.get();
}

// Runs the cipher over `text` in place, all but its end (EVP_CipherFinal).
bool Run(EVP_CIPHER_CTX* context, const Key& key, const char* nonce, absl::string_view place,
         char* text, size_t size, bool encrypt) {
  int count = 0;
  return EVP_CipherInit_ex2(context, nullptr, key.bytes().data(), Bytes(nonce), encrypt ? 1 : 0,
                            nullptr) == 1 &&
         EVP_CipherUpdate(context, nullptr, &count, Bytes(place), static_cast<int>(place.size())) ==
             1 &&
         EVP_CipherUpdate(context, Bytes(text), &count, Bytes(text), static_cast<int>(size)) == 1;
}

}  // namespace

Key Key::Random() {
  Key key;
  if (RAND_bytes(key.bytes_.data(), kKeyBytes) != 1) log::Fatal("no random numbers");
  return key;
}

Key Key::FromBytes(absl::string_view bytes) {
  if (bytes.size() != kKeyBytes) log::Fatal("a key has not 32 bytes");
  Key key;
  std::memcpy(key.bytes_.data(), bytes.data(), kKeyBytes);
  return key;
}

Key::~Key() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

Key Key::Derive(absl::string_view purpose) const {
  return FromBytes(Mac(*this, absl::StrCat(purpose, absl::string_view("\1", 1))));
}

std::string RandomBytes(size_t n) {
  std::string bytes(n, '\0');
  if (RAND_bytes(Bytes(bytes.data()), static_cast<int>(n)) != 1) log::Fatal("no random numbers");
  return bytes;
}

std::string Seal(const Key& key, std::string plaintext, absl::string_view place) {
  std::string sealed = std::move(plaintext);
  const std::string seal = SealInPlace(key, &sealed, place);
  sealed += seal;
  return sealed;
}

std::string SealInPlace(const Key& key, std::string* text, absl::string_view place) {
  std::string seal(kSealBytes, kVersion);
  char* const nonce = seal.data();
  char* const tag = nonce + kNonceBytes;
  EVP_CIPHER_CTX* const context = Context();
  int count = 0;
  if (RAND_bytes(Bytes(nonce), kNonceBytes) != 1 ||
      !Run(context, key, nonce, place, text->data(), text->size(), /*encrypt=*/true) ||
      EVP_CipherFinal_ex(context, Bytes(tag), &count) != 1 ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagBytes, tag) != 1) {
    log::Fatal("AES-256-GCM failed to encrypt");
  }
  return seal;
}

absl::StatusOr<std::string> Open(const Key& key, std::string sealed, absl::string_view place) {
  if (sealed.size() < kSealBytes || sealed.back() != kVersion) {
    return absl::DataLossError("an encrypted value is cut or of another version");
  }
  const size_t size = sealed.size() - kSealBytes;
  char* const nonce = sealed.data() + size;
  char* const tag = nonce + kNonceBytes;
  EVP_CIPHER_CTX* const context = Context();
  int count = 0;
  unsigned char none;
  if (!Run(context, key, nonce, place, sealed.data(), size, /*encrypt=*/false) ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag) != 1 ||
      EVP_CipherFinal_ex(context, &none, &count) != 1) {
    return absl::DataLossError("an encrypted value was changed, moved, or made with another key");
  }
  sealed.resize(size);
  return sealed;
}

}  // namespace mneme::crypto

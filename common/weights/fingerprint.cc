#include "common/weights/fingerprint.h"

#include <algorithm>
#include <array>

#include "absl/strings/escaping.h"

namespace mneme::weights {
namespace {

constexpr uint64_t kSampleBytes = 256;

}  // namespace

Fingerprint::Fingerprint() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
}

void Fingerprint::Add(const void* data, uint64_t size) {
  EVP_DigestUpdate(context_.get(), &size, sizeof(size));
  EVP_DigestUpdate(context_.get(), data, size);
}

void Fingerprint::AddTensor(absl::string_view name, const TensorView& view) {
  Add(name);
  Add(view.Describe());
  const uint64_t sample = std::min(kSampleBytes, view.size_bytes);
  const uint64_t last = view.size_bytes - sample;
  for (const uint64_t at : {uint64_t{0}, last / 2, last}) Add(view.data + at, sample);
}

std::string Fingerprint::Hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  EVP_DigestFinal_ex(context_.get(), digest.data(), &size);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), size));
}

}  // namespace mneme::weights

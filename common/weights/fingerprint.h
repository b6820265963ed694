// The identity of a set of weights: SHA-256 over length-prefixed parts, so that no two sequences of
// parts look alike.
#pragma once

#include <openssl/evp.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "common/weights/tensor_view.h"

namespace mneme::weights {

class Fingerprint {
 public:
  Fingerprint();

  void Add(const void* data, uint64_t size);
  void Add(absl::string_view text) { Add(text.data(), text.size()); }
  // Adds name, type, shape and samples of the data: begin, middle and end. Reads some pages only.
  void AddTensor(absl::string_view name, const TensorView& view);
  // Returns 64 hex digits. Nothing may be added afterwards.
  std::string Hex();

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace mneme::weights

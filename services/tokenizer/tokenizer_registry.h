// The loaded tokenizers by name.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/text/tokenizer.h"

namespace mneme::tokenizer {

// Filled at start and not changed while it serves: then reading is thread-safe.
class TokenizerRegistry {
 public:
  // INVALID_ARGUMENT: the name is empty or taken.
  absl::Status Add(const std::string& name, std::unique_ptr<text::Tokenizer> tokenizer);

  // NOT_FOUND: no such model. The pointer lives as long as the registry.
  absl::StatusOr<const text::Tokenizer*> Find(absl::string_view name) const;

  std::vector<std::string> Names() const;

 private:
  std::map<std::string, std::unique_ptr<text::Tokenizer>, std::less<>> tokenizers_;
};

}  // namespace mneme::tokenizer

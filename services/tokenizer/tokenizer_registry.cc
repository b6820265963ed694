#include "services/tokenizer/tokenizer_registry.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace mneme::tokenizer {

absl::Status TokenizerRegistry::Add(const std::string& name,
                                    std::unique_ptr<text::Tokenizer> tokenizer) {
  if (name.empty()) return absl::InvalidArgumentError("a model has no name: set models[].name");
  if (!tokenizers_.emplace(name, std::move(tokenizer)).second) {
    return absl::InvalidArgumentError(absl::StrCat("two models have the same name: ", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<const text::Tokenizer*> TokenizerRegistry::Find(absl::string_view name) const {
  const auto found = tokenizers_.find(std::string_view(name.data(), name.size()));
  if (found == tokenizers_.end()) {
    return absl::NotFoundError(absl::StrCat("no tokenizer of this model is loaded: ", name));
  }
  return found->second.get();
}

std::vector<std::string> TokenizerRegistry::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, tokenizer] : tokenizers_) names.push_back(name);
  return names;
}

}  // namespace mneme::tokenizer

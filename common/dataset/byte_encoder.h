// A tokenizer for tests: listed texts are one token each, every other byte is its own id.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "common/dataset/text_encoder.h"

namespace mneme::dataset {

class ByteEncoder final : public TextEncoder {
 public:
  // Ids of texts are above 255. At each position the texts are tried in their order.
  using Tokens = std::vector<std::pair<std::string, int32_t>>;

  ByteEncoder(Tokens tokens, std::optional<int32_t> bos) : tokens_(std::move(tokens)), bos_(bos) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens) const override {
    std::vector<int32_t> ids;
    if (add_special_tokens && bos_.has_value()) ids.push_back(*bos_);
    while (!text.empty()) {
      const auto [token, id] = First(text);
      ids.push_back(id);
      text.remove_prefix(token.size());
    }
    return ids;
  }

  // Of special tokens only bos is left out.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                     bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (skip_special_tokens && id == bos_) continue;
      if (id < 256) {
        text += static_cast<char>(id);
        continue;
      }
      for (const auto& [token, token_id] : tokens_) {
        if (token_id == id) text += token;
      }
    }
    return text;
  }

  std::string eos_text() const override { return "</s>"; }
  std::optional<int32_t> leading_bos() const override { return bos_; }

 private:
  std::pair<std::string, int32_t> First(absl::string_view text) const {
    for (const auto& token : tokens_) {
      if (absl::StartsWith(text, token.first)) return token;
    }
    return {std::string(text.substr(0, 1)), static_cast<unsigned char>(text[0])};
  }

  const Tokens tokens_;
  const std::optional<int32_t> bos_;
};

}  // namespace mneme::dataset

#include "tests/golden/beacon/toy_tokenizer.h"

#include <optional>

namespace mneme::testing {
namespace {

constexpr int32_t kBos = 256;

dataset::ByteEncoder::Tokens UsualTokens() {
  return {{"<s>", kBos},
          {"</s>", 257},
          {"<|im_start|>", 258},
          {"<|im_end|>", 259},
          {"<|endoftext|>", 260},
          {"<|start_header_id|>", 261},
          {"<|end_header_id|>", 262},
          {"<|eot_id|>", 263},
          {"<|begin_of_text|>", 264},
          {"[INST]", 265},
          {"[/INST]", 266},
          {"user", 267},
          {"assistant", 268},
          {"system", 269},
          {"\n\n", 270}};
}

}  // namespace

dataset::ByteEncoder ToyTokenizer(const nlohmann::ordered_json& file, bool adds_bos) {
  dataset::ByteEncoder::Tokens tokens;
  if (file.contains("special_tokens")) {
    for (const auto& [text, id] : file["special_tokens"].items()) {
      tokens.emplace_back(text, id.get<int32_t>());
    }
  } else {
    tokens = UsualTokens();
  }
  return dataset::ByteEncoder(std::move(tokens),
                              adds_bos ? std::optional<int32_t>(kBos) : std::nullopt);
}

}  // namespace mneme::testing

// One golden file against its tokenizer: ids, ids with special tokens, decoded text, and decoding
// token by token. MNEME_STEM names the file; ctest makes one test of each (discover.cmake.in).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "common/text/sentencepiece_model.h"
#include "common/text/stream_decoder.h"
#include "tests/golden/tokenizers/reference_tokenizers.h"

namespace mneme::testing {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAreArray;

class TokenizerGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto content = ReadWholeFile(GoldenFolder() + "/tokenizers/" + GetParam() + ".jsonl");
    ASSERT_TRUE(content.ok()) << content.status();
    for (const absl::string_view line : absl::StrSplit(*content, '\n', absl::SkipEmpty())) {
      cases_.push_back(Json::parse(line.begin(), line.end()));
    }
    ASSERT_FALSE(cases_.empty());
    auto tokenizer = LoadReferenceTokenizer(GetParam());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  void Compare(const text::Tokenizer& tokenizer) {
    const bool plain_text = IsPlainText(GetParam());
    size_t num_with_special = 0;
    for (size_t index = 0; index < cases_.size(); ++index) {
      SCOPED_TRACE(index);
      const auto text = cases_[index]["text"].get<std::string>();
      const auto expected = cases_[index]["ids"].get<std::vector<int32_t>>();
      const auto ids = tokenizer.Encode(text, {.plain_text = plain_text});
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_THAT(*ids, ElementsAreArray(expected));
      if (cases_[index].contains("ids_with_special")) {
        ++num_with_special;
        const auto with_special =
            tokenizer.Encode(text, {.add_special_tokens = true, .plain_text = plain_text});
        ASSERT_TRUE(with_special.ok()) << with_special.status();
        EXPECT_THAT(
            *with_special,
            ElementsAreArray(cases_[index]["ids_with_special"].get<std::vector<int32_t>>()));
      }
      const auto decoded = cases_[index]["decoded"].get<std::string>();
      EXPECT_EQ(tokenizer.Decode(expected, /*skip_special_tokens=*/false).value(), decoded);
      text::StreamDecoder decoder(tokenizer.table(), {});
      std::string streamed;
      for (const int32_t id : expected) streamed += decoder.Push(id).value();
      streamed += decoder.Finish();
      EXPECT_EQ(streamed, decoded);
    }
    RecordProperty("texts", static_cast<int>(cases_.size()));
    RecordProperty("texts_with_special", static_cast<int>(num_with_special));
  }

  std::vector<Json> cases_;
  std::unique_ptr<text::Tokenizer> tokenizer_;
};

TEST_P(TokenizerGoldenTest, IdsAndTextsAreTheReferences) { Compare(*tokenizer_); }

// The same model as GGUF files carry it: pieces with scores.
TEST_P(TokenizerGoldenTest, PiecesWithScoresGiveTheSame) {
  if (!IsPlainText(GetParam()) || GetParam().find("sentencepiece") == std::string::npos) {
    GTEST_SKIP() << "only SentencePiece files have such a form";
  }
  auto folder = FetchPackage("mistral-common");
  ASSERT_TRUE(folder.ok()) << folder.status();
  const std::string name = GetParam() == "mistral-v1-sentencepiece"
                               ? "tokenizer.model.v1"
                               : "mistral_instruct_tokenizer_240323.model.v3";
  auto serialized = ReadWholeFile(*folder + "/mistral_common/data/" + name);
  ASSERT_TRUE(serialized.ok()) << serialized.status();
  const auto model = text::SentencePieceModel::Parse(*serialized);
  ASSERT_TRUE(model.ok()) << model.status();
  text::GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  for (const text::SentencePiece& piece : model->pieces()) {
    vocabulary.tokens.push_back(piece.piece);
    vocabulary.scores.push_back(piece.score);
    vocabulary.token_types.push_back(static_cast<int32_t>(piece.kind));
  }
  vocabulary.bos_token_id = model->bos_id();
  vocabulary.eos_token_id = model->eos_id();
  const auto tokenizer = text::Tokenizer::FromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  Compare(**tokenizer);
}

std::vector<std::string> Stems() {
  const char* stem = std::getenv("MNEME_STEM");
  if (stem != nullptr) return {stem};
  return GoldenStems();
}

std::string CaseName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (!isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Files, TokenizerGoldenTest, ::testing::ValuesIn(Stems()), CaseName);

}  // namespace
}  // namespace mneme::testing

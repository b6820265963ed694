#include "common/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/text/byte_level.h"
#include "common/text/ffi_handle.h"
#include "common/text/sentencepiece_model.h"
#include "common/text/tokenizer_json.h"

namespace mneme::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kControl = static_cast<int32_t>(PieceKind::kControl);
constexpr int32_t kNormal = static_cast<int32_t>(PieceKind::kNormal);

// All bytes, a few merges, and special tokens: enough to see every path.
GgufVocabulary ByteLevelVocabulary(const std::string& pre) {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = pre;
  const auto add = [&vocabulary](const std::string& token, int32_t type) {
    vocabulary.tokens.push_back(token);
    vocabulary.token_types.push_back(type);
  };
  add("<s>", kControl);
  add("<|im_end|>", kControl);
  for (int byte = 0; byte < 256; ++byte) {
    add(ToByteLevel(std::string(1, static_cast<char>(byte))), kNormal);
  }
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {ToByteLevel(" "), "hello"}}) {
    vocabulary.merges.push_back(left + " " + right);
    add(left + right, kNormal);
  }
  vocabulary.bos_token_id = 0;
  vocabulary.eos_token_id = 1;
  return vocabulary;
}

GgufVocabulary SentencePieceVocabulary() {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  const auto add = [&vocabulary](const std::string& token, PieceKind kind, float score) {
    vocabulary.tokens.push_back(token);
    vocabulary.token_types.push_back(static_cast<int32_t>(kind));
    vocabulary.scores.push_back(score);
  };
  add("<unk>", PieceKind::kUnknown, 0);
  add("<s>", PieceKind::kControl, 0);
  add("</s>", PieceKind::kControl, 0);
  for (int byte = 0; byte < 256; ++byte) {
    add(absl::StrFormat("<0x%02X>", byte), PieceKind::kByte, 0);
  }
  float score = 0;
  for (const char* piece : {"▁h", "▁he", "ll", "▁hell", "▁hello", "▁", "h", "e", "l", "o"}) {
    add(piece, PieceKind::kNormal, --score);
  }
  vocabulary.bos_token_id = 1;
  vocabulary.eos_token_id = 2;
  return vocabulary;
}

std::unique_ptr<Tokenizer> Load(const GgufVocabulary& vocabulary) {
  auto tokenizer = Tokenizer::FromGguf(vocabulary);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::string RoundTrip(const Tokenizer& tokenizer, const std::string& text,
                      EncodeOptions options = {.plain_text = true}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? tokenizer.Decode(*ids, false).value() : "";
}

TEST(TokenizerTest, ByteLevelMergesAndSpecialTokens) {
  const auto tokenizer = Load(ByteLevelVocabulary("qwen2"));
  EXPECT_THAT(tokenizer->Encode("hello hello<|im_end|>", {}).value(), ElementsAre(261, 262, 1));
  EXPECT_EQ(tokenizer->vocab_size(), 263);
  EXPECT_THAT(tokenizer->bos_token_ids(), ElementsAre(0));
  EXPECT_THAT(tokenizer->eos_token_ids(), ElementsAre(1));
  EXPECT_EQ(tokenizer->eos_token(), "<|im_end|>");
  EXPECT_EQ(tokenizer->table().Piece(262), " hello");
  EXPECT_EQ(tokenizer->fingerprint().size(), 64);
}

TEST(TokenizerTest, PlainTextDoesNotRecogniseSpecialTokens) {
  for (const auto& vocabulary : {ByteLevelVocabulary("gpt-2"), SentencePieceVocabulary()}) {
    const auto tokenizer = Load(vocabulary);
    EXPECT_THAT(tokenizer->Encode("<s>", {}).value(), ElementsAre(*vocabulary.bos_token_id));
    EXPECT_GT(tokenizer->Encode("<s>", {.plain_text = true}).value().size(), 1);
  }
}

TEST(TokenizerTest, BosIsAddedWhereTheModelWantsIt) {
  GgufVocabulary vocabulary = ByteLevelVocabulary("qwen2");
  EXPECT_THAT(Load(vocabulary)->Encode("hello", {.add_special_tokens = true}).value(),
              ElementsAre(261));
  vocabulary.add_bos_token = true;
  vocabulary.add_eos_token = true;
  EXPECT_THAT(Load(vocabulary)->Encode("hello", {.add_special_tokens = true}).value(),
              ElementsAre(0, 261, 1));
  EXPECT_THAT(
      Load(SentencePieceVocabulary())->Encode("hello", {.add_special_tokens = true}).value(),
      ElementsAre(1, 263));
}

TEST(TokenizerTest, SentencePieceStyleDecodesWithoutTheSpaceInFront) {
  const auto tokenizer = Load(SentencePieceVocabulary());
  EXPECT_THAT(tokenizer->Encode("hello hello", {}).value(), ElementsAre(263, 263));
  EXPECT_EQ(tokenizer->Decode({263, 263}, false).value(), "hello hello");
  EXPECT_EQ(RoundTrip(*tokenizer, "hello €\n"), "hello €\n");
}

TEST(TokenizerTest, ContinuationGetsNoSpaceInFront) {
  const auto tokenizer = Load(SentencePieceVocabulary());
  EXPECT_THAT(tokenizer->EncodeContinuation(" hello").value(), ElementsAre(263));
  EXPECT_THAT(tokenizer->EncodeContinuation("ll").value(), ElementsAre(261));
  EXPECT_THAT(tokenizer->EncodeContinuation("<s>ll").value(), ElementsAre(1, 261));
  EXPECT_THAT(tokenizer->EncodeContinuation("").value(), ElementsAre());
}

TEST(TokenizerTest, EmptyTextsAndNulsAreText) {
  for (const auto& vocabulary : {ByteLevelVocabulary("smollm"), SentencePieceVocabulary()}) {
    const auto tokenizer = Load(vocabulary);
    EXPECT_THAT(tokenizer->Encode("", {}).value(), ElementsAre());
    EXPECT_EQ(tokenizer->Decode({}, false).value(), "");
    const std::string nul("a\0b\0", 4);
    EXPECT_EQ(RoundTrip(*tokenizer, nul), nul);
  }
}

TEST(TokenizerTest, InvalidUtf8IsInvalidArgument) {
  const auto tokenizer = Load(ByteLevelVocabulary("gpt-2"));
  const auto ids = tokenizer->Encode("ab\xff", {});
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 2"));
}

// Texts on which a careless splitter takes quadratic time or runs out of its backtracking limit.
TEST(TokenizerTest, LargeTextsOfHardShapesComeBack) {
  constexpr size_t kSize = 1 << 18;
  std::vector<std::string> texts = {std::string(kSize, 'a'),  std::string(kSize, ' '),
                                    std::string(kSize, '\n'), std::string(kSize, '1'),
                                    std::string(kSize, '.'),  std::string(kSize, '\0')};
  std::string mixed;
  while (mixed.size() < kSize) mixed += "hello  wörld 日本語 \t\n 12345 !?... ";
  texts.push_back(mixed);
  texts.push_back(std::string(kSize, ' ') + "x");
  for (const char* pre : {"gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"}) {
    const auto tokenizer = Load(ByteLevelVocabulary(pre));
    for (const std::string& text : texts) {
      ASSERT_EQ(RoundTrip(*tokenizer, text).compare(text), 0) << pre << " " << int{text[0]};
    }
  }
  const auto tokenizer = Load(SentencePieceVocabulary());
  for (const std::string& text : texts) {
    ASSERT_EQ(RoundTrip(*tokenizer, text).compare(text), 0) << int{text[0]};
  }
}

TEST(TokenizerTest, MebibyteWithoutASpaceComesBack) {
  for (const auto& vocabulary : {ByteLevelVocabulary("llama-bpe"), SentencePieceVocabulary()}) {
    const auto tokenizer = Load(vocabulary);
    std::string text;
    while (text.size() < size_t{1} << 20) text += "hellohe";
    ASSERT_EQ(RoundTrip(*tokenizer, text).compare(text), 0);
  }
}

// A step of whitespace over the crate's backtracking limit: an error at worst, never a crash.
TEST(TokenizerTest, SixteenMebibytesOfSpacesDoNotEndTheProcess) {
  const auto tokenizer = Load(ByteLevelVocabulary("llama-bpe"));
  const auto ids = tokenizer->Encode(std::string(16 << 20, ' ') + "x", {});
  EXPECT_TRUE(ids.ok() || ids.status().code() == absl::StatusCode::kInternal) << ids.status();
}

TEST(TokenizerTest, TableDecodesAsTheCrateDoes) {
  const std::string sentencepiece_style = R"({
    "version": "1.0", "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    "added_tokens": [{"id": 1, "content": "<s>", "special": true, "single_word": false,
      "lstrip": false, "rstrip": false, "normalized": false}],
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "merges": [],
      "vocab": {"<unk>": 0, "<s>": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "<0x20>": 5,
        "▁": 6, "▁a": 7, "é": 8, "▁▁": 9, "<0xFF>": 10}}})";
  const std::string byte_level = TokenizerJsonOfGguf(ByteLevelVocabulary("qwen2")).value();
  std::mt19937 random(11);
  for (const std::string& json : {sentencepiece_style, byte_level}) {
    auto crate = ffi::CrateTokenizer::Create(json);
    ASSERT_TRUE(crate.ok()) << crate.status();
    auto tokenizer = Tokenizer::FromTokenizerJson(json, {});
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (int round = 0; round < 5000; ++round) {
      std::vector<int32_t> ids(random() % 12);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % (*tokenizer)->vocab_size());
      for (const bool skip : {false, true}) {
        ASSERT_EQ((*tokenizer)->Decode(ids, skip).value(), crate->Decode(ids, skip).value());
      }
    }
  }
}

TEST(TokenizerTest, BadFilesSayWhatIsWrong) {
  EXPECT_EQ(Tokenizer::FromTokenizerJson("{", {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokenizer::FromTokenizerJson("[[[[", {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokenizer::FromSentencePiece("not a model", {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokenizer::FromTekken("{}", {}).status().code(), absl::StatusCode::kInvalidArgument);
  GgufVocabulary vocabulary = ByteLevelVocabulary("never-heard-of");
  EXPECT_THAT(std::string(Tokenizer::FromGguf(vocabulary).status().message()),
              HasSubstr("never-heard-of"));
  vocabulary = ByteLevelVocabulary("qwen2");
  vocabulary.eos_token_id = 100000;
  EXPECT_EQ(Tokenizer::FromGguf(vocabulary).status().code(), absl::StatusCode::kInvalidArgument);
  vocabulary = ByteLevelVocabulary("qwen2");
  vocabulary.merges.push_back("no such");
  EXPECT_EQ(Tokenizer::FromGguf(vocabulary).status().code(), absl::StatusCode::kInvalidArgument);
  vocabulary = SentencePieceVocabulary();
  vocabulary.scores.pop_back();
  EXPECT_EQ(Tokenizer::FromGguf(vocabulary).status().code(), absl::StatusCode::kInvalidArgument);
  vocabulary.model = "t5";
  EXPECT_EQ(Tokenizer::FromGguf(vocabulary).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(TokenizerTest, OneTokenizerServesManyThreads) {
  const auto tokenizer = Load(ByteLevelVocabulary("qwen2"));
  const std::string text = "hello wörld hello<|im_end|> 12 hello";
  const auto expected = tokenizer->Encode(text, {}).value();
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        EXPECT_EQ(tokenizer->Encode(text, {}).value(), expected);
        EXPECT_EQ(tokenizer->Decode(expected, false).value(), text);
        EXPECT_TRUE(tokenizer->Encode(text, {.plain_text = true}).ok());
      }
    });
  }
}

}  // namespace
}  // namespace mneme::text

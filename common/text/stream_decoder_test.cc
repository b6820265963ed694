#include "common/text/stream_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"

namespace mneme::text {
namespace {

TokenTable Table(std::vector<std::string> pieces, InvalidBytes invalid = {},
                 std::vector<int32_t> byte_ids = {}, bool strip = false,
                 std::vector<int32_t> special = {}) {
  auto table = TokenTable::Create({.pieces = std::move(pieces),
                                   .special_ids = std::move(special),
                                   .byte_ids = std::move(byte_ids),
                                   .invalid_bytes = invalid,
                                   .strip_leading_space = strip});
  EXPECT_TRUE(table.ok()) << table.status();
  return *std::move(table);
}

// One id per byte value.
std::vector<std::string> AllBytes() {
  std::vector<std::string> pieces;
  for (int byte = 0; byte < 256; ++byte) pieces.emplace_back(1, static_cast<char>(byte));
  return pieces;
}

std::vector<int32_t> IdsOf(absl::string_view bytes) {
  std::vector<int32_t> ids;
  for (const char byte : bytes) ids.push_back(static_cast<uint8_t>(byte));
  return ids;
}

// The texts of the single steps, the last one from Finish.
std::vector<std::string> Steps(const TokenTable& table, const std::vector<int32_t>& ids,
                               StreamDecoder::Options options = {}) {
  StreamDecoder decoder(table, std::move(options));
  std::vector<std::string> steps;
  for (const int32_t id : ids) steps.push_back(decoder.Push(id).value());
  steps.push_back(decoder.Finish());
  return steps;
}

std::string Joined(const std::vector<std::string>& steps) {
  std::string text;
  for (const std::string& step : steps) text += step;
  return text;
}

TEST(StreamDecoderTest, CharacterOverSeveralTokensComesWhole) {
  const TokenTable table = Table({"a\xe2", "\x82", "\xac!"});
  EXPECT_THAT(Steps(table, {0, 1, 2}), testing::ElementsAre("a", "", "€!", ""));
}

TEST(StreamDecoderTest, CutCharacterAtTheEndIsOneReplacement) {
  const TokenTable table = Table({"a\xf0\x9f\x98"});
  EXPECT_THAT(Steps(table, {0}), testing::ElementsAre("a", "\xef\xbf\xbd"));
}

TEST(StreamDecoderTest, InvalidBytesFollowTheMaximalSubpartRule) {
  const TokenTable table = Table(AllBytes());
  const auto decode = [&table](absl::string_view bytes) {
    return table.Decode(IdsOf(bytes), false).value();
  };
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(decode("\xff"), mark);
  EXPECT_EQ(decode("\xe2\x82z"), mark + "z");
  EXPECT_EQ(decode("\xe2\xe2\x82\xac"), mark + "€");
  EXPECT_EQ(decode("\xc0\x80"), mark + mark);
  EXPECT_EQ(decode("\xed\xa0\x80"), mark + mark + mark);
  EXPECT_EQ(decode("\xf4\x90\x80\x80"), mark + mark + mark + mark);
  EXPECT_EQ(decode("\xf0\x9f\x98\x80"), "😀");
}

TEST(StreamDecoderTest, RunOfByteTokensWithAFaultIsReplacedByteForByte) {
  const TokenTable table =
      Table({"\xe2", "\x82", "\xac", "x", "\xff"}, InvalidBytes::kWholeRun, {0, 1, 2, 4});
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(table.Decode({0, 1, 2, 3}, false).value(), "€x");
  EXPECT_EQ(table.Decode({0, 1, 2, 4, 3}, false).value(), mark + mark + mark + mark + "x");
  EXPECT_THAT(Steps(table, {0, 1, 2, 3}), testing::ElementsAre("", "", "", "€x", ""));
}

TEST(StreamDecoderTest, SentencePieceReplacesEachByteThatBeginsNoCharacter) {
  const TokenTable table = Table({"\xe2", "\x82", "\xac", "x"}, InvalidBytes::kEachByte, {0, 1, 2});
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(table.Decode({0, 1, 3}, false).value(), mark + mark + "x");
  EXPECT_EQ(table.Decode({2, 0, 1, 2, 3}, false).value(), mark + "€x");
}

TEST(StreamDecoderTest, OneLeadingSpaceIsStrippedFromTheWholeText) {
  const TokenTable table = Table({" a", " ", "<s>"}, InvalidBytes::kWholeRun, {}, true, {2});
  EXPECT_EQ(table.Decode({0, 0}, false).value(), "a a");
  EXPECT_EQ(table.Decode({1, 0}, false).value(), " a");
  EXPECT_EQ(table.Decode({2, 0}, false).value(), "<s> a");
  EXPECT_EQ(table.Decode({2, 0}, true).value(), "a");
}

TEST(StreamDecoderTest, StopStringAcrossPiecesIsNeverSent) {
  const TokenTable table = Table({"Hello S", "TO", "P there", "TA"});
  StreamDecoder decoder(table, {.stop = {"STOP"}});
  EXPECT_EQ(decoder.Push(0).value(), "Hello ");
  EXPECT_EQ(decoder.Push(1).value(), "");
  EXPECT_FALSE(decoder.stopped());
  EXPECT_EQ(decoder.Push(2).value(), "");
  EXPECT_TRUE(decoder.stopped());
  EXPECT_EQ(decoder.stop_met(), "STOP");
  EXPECT_EQ(decoder.Push(0).value(), "");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoderTest, TextThatOnlyBeganLikeAStopStringIsSent) {
  const TokenTable table = Table({"Hello S", "TO", "P there", "TA"});
  EXPECT_THAT(Steps(table, {0, 3}, {.stop = {"STOP"}}), testing::ElementsAre("Hello ", "STA", ""));
  EXPECT_THAT(Steps(table, {0, 1}, {.stop = {"STOP"}}), testing::ElementsAre("Hello ", "", "STO"));
}

TEST(StreamDecoderTest, StopThatCompletesFirstWinsHoweverTheTextIsCut) {
  const TokenTable bytes = Table(AllBytes());
  const TokenTable whole = Table({"xabcdx"});
  const StreamDecoder::Options options{.stop = {"abcd", "bc", "abc"}};
  EXPECT_EQ(Joined(Steps(bytes, IdsOf("xabcdx"), options)), "x");
  EXPECT_EQ(Joined(Steps(whole, {0}, options)), "x");
}

TEST(StreamDecoderTest, SkippedSpecialTokenLeavesNoText) {
  const TokenTable table = Table({"a", "<|end|>"}, {}, {}, false, {1});
  EXPECT_EQ(table.Decode({0, 1, 0}, true).value(), "aa");
  EXPECT_EQ(table.Decode({0, 1, 0}, false).value(), "a<|end|>a");
}

TEST(StreamDecoderTest, IdOutsideTheVocabularyIsInvalid) {
  const TokenTable table = Table({"a"});
  StreamDecoder decoder(table, {});
  EXPECT_EQ(decoder.Push(1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(decoder.Push(-1).status().code(), absl::StatusCode::kInvalidArgument);
}

// Random bytes, random cuts, random stops: what streaming gives is the whole text up to the stop.
TEST(StreamDecoderTest, StreamedTextEqualsWholeTextUpToTheStop) {
  std::mt19937 random(7);
  for (const InvalidBytes mode :
       {InvalidBytes::kMaximalSubpart, InvalidBytes::kWholeRun, InvalidBytes::kEachByte}) {
    std::vector<std::string> pieces = AllBytes();
    std::vector<int32_t> byte_ids;
    for (int id = 0; id < 256 && mode != InvalidBytes::kMaximalSubpart; ++id)
      byte_ids.push_back(id);
    for (const char* piece : {" ab", "ba", "é", "日本", "a€", " "}) pieces.emplace_back(piece);
    const TokenTable table = Table(std::move(pieces), mode, std::move(byte_ids), true);
    const std::string alphabet = "ab \xe2\x82\xac\xc3\xa9\xff";
    for (int round = 0; round < 2000; ++round) {
      std::vector<int32_t> ids(random() % 24);
      for (int32_t& id : ids) {
        id = random() % 2 == 0 ? 256 + static_cast<int32_t>(random() % 6)
                               : static_cast<uint8_t>(alphabet[random() % alphabet.size()]);
      }
      const std::string whole = table.Decode(ids, false).value();
      EXPECT_EQ(Joined(Steps(table, ids)), whole);
      const std::vector<std::string> stops = {"ab a", "€a", "aa"};
      size_t end = std::string::npos;
      std::string expected = whole;
      for (const std::string& stop : stops) {
        const size_t at = whole.find(stop);
        if (at != std::string::npos && at + stop.size() < end) {
          end = at + stop.size();
          expected = whole.substr(0, at);
        }
      }
      ASSERT_EQ(Joined(Steps(table, ids, {.stop = stops})), expected);
    }
  }
}

}  // namespace
}  // namespace mneme::text

#include "common/dataset/lm_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "common/dataset/answer_labels.h"
#include "common/dataset/byte_encoder.h"

namespace mneme::dataset {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int32_t kBos = 256;

std::vector<int32_t> Document(int32_t size) {
  std::vector<int32_t> ids(size);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

std::vector<LabelledChunk> Cut(int32_t size, std::optional<int32_t> bos,
                               const WindowOptions& options) {
  const auto chunks = CutWindows(Document(size), bos, options);
  EXPECT_TRUE(chunks.ok()) << chunks.status();
  return *chunks;
}

TEST(LmWindowsTest, EachTokenIsScoredOnce) {
  for (const std::optional<int32_t> bos :
       {std::optional<int32_t>(), std::optional<int32_t>(kBos)}) {
    std::vector<int32_t> scored;
    for (const LabelledChunk& chunk : Cut(50, bos, {.max_length = 20, .stride = 7})) {
      ASSERT_THAT(chunk.labels, SizeIs(chunk.input_ids.size()));
      EXPECT_LE(chunk.input_ids.size(), 20u);
      for (const int32_t label : chunk.labels) {
        if (label != kIgnoredLabel) scored.push_back(label);
      }
    }
    EXPECT_EQ(scored, Document(50));
  }
}

TEST(LmWindowsTest, BosTakesOnePlaceOfEachChunkAndHasNoLabel) {
  EXPECT_THAT(Cut(4, kBos, {.max_length = 4, .stride = 1}),
              ElementsAre(LabelledChunk{{kBos, 0, 1, 2}, {-100, 0, 1, 2}},
                          LabelledChunk{{kBos, 1, 2, 3}, {-100, -100, -100, 3}}));
}

TEST(LmWindowsTest, LastChunkEndsWithTheDocument) {
  EXPECT_THAT(Cut(3, std::nullopt, {.max_length = 3, .stride = 1}), SizeIs(1));
  EXPECT_THAT(Cut(4, std::nullopt, {.max_length = 3, .stride = 3}),
              ElementsAre(LabelledChunk{{0, 1, 2}, {0, 1, 2}}, LabelledChunk{{3}, {3}}));
}

TEST(LmWindowsTest, StrideOfZeroIsOneChunk) {
  EXPECT_THAT(Cut(9, std::nullopt, {.max_length = 3, .stride = 0}),
              ElementsAre(LabelledChunk{{0, 1, 2}, {0, 1, 2}}));
}

TEST(LmWindowsTest, TokensThatAStrideSkipsAreInNoChunk) {
  EXPECT_THAT(Cut(6, std::nullopt, {.max_length = 2, .stride = 4}),
              ElementsAre(LabelledChunk{{0, 1}, {0, 1}}, LabelledChunk{{4, 5}, {4, 5}}));
  EXPECT_THAT(Cut(4, std::nullopt, {.max_length = 2, .stride = INT64_MAX}), SizeIs(1));
}

TEST(LmWindowsTest, ShortAndEmptyDocumentsHaveNoChunk) {
  EXPECT_THAT(Cut(0, kBos, {}), IsEmpty());
  EXPECT_THAT(Cut(9, kBos, {.min_length = 10}), IsEmpty());
  EXPECT_THAT(Cut(10, kBos, {.min_length = 10}), SizeIs(1));
}

TEST(LmWindowsTest, LengthsThatCannotBeAreInvalid) {
  const auto full = CutWindows(Document(3), kBos, {.max_length = 1});
  EXPECT_EQ(full.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(full.status().message()), HasSubstr("use at least 2: 1"));
  EXPECT_TRUE(CutWindows(Document(3), std::nullopt, {.max_length = 1}).ok());
  const auto backward = CutWindows(Document(3), std::nullopt, {.stride = -1});
  EXPECT_THAT(std::string(backward.status().message()), HasSubstr("stride must be 0"));
}

TEST(LmWindowsTest, TextIsTokenisedWithTheEncodersBos) {
  const auto chunks = EncodeWindows("ab", ByteEncoder({}, kBos), {});
  ASSERT_TRUE(chunks.ok());
  EXPECT_THAT(*chunks, ElementsAre(LabelledChunk{{kBos, 'a', 'b'}, {-100, 'a', 'b'}}));
}

}  // namespace
}  // namespace mneme::dataset

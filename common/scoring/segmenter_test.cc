#include "common/scoring/segmenter.h"

#include <gmock/gmock.h>

namespace mneme::scoring {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SegmenterTest, AsciiWordsTakeDecimalsAndPercent) {
  EXPECT_THAT(SegmentAscii("v1.2.3 12.5% x%%"),
              ElementsAre("v1.2", ".", "3", " ", "12.5%", " ", "x%", "%"));
  EXPECT_THAT(SegmentAscii("a.b 3."), ElementsAre("a", ".", "b", " ", "3", "."));
}

TEST(SegmenterTest, EveryOtherCharacterIsAWord) {
  EXPECT_THAT(SegmentAscii("a_b，北京1"), ElementsAre("a", "_", "b", "，", "北", "京", "1"));
  EXPECT_THAT(SegmentAscii("a\xff\xe4"), ElementsAre("a", "\xff", "\xe4"));
  EXPECT_THAT(SegmentAscii(""), IsEmpty());
}

TEST(SegmenterTest, CharactersStandAlone) {
  EXPECT_THAT(SegmentCharacters("ab北 é"), ElementsAre("a", "b", "北", " ", "é"));
}

}  // namespace
}  // namespace mneme::scoring

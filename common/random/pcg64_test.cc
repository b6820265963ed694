#include "common/random/pcg64.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace mneme::random {
namespace {

using ::testing::ElementsAre;

absl::uint128 Decimal(const char* digits) {
  absl::uint128 value = 0;
  for (; *digits != '\0'; ++digits) value = value * 10 + static_cast<uint64_t>(*digits - '0');
  return value;
}

TEST(Pcg64Test, SeedsLikeNumPy) {
  EXPECT_EQ(Pcg64(42).state().state, Decimal("274674114334540486603088602300644985544"));
  EXPECT_EQ(Pcg64(42).state().increment, Decimal("332724090758049132448979897138935081983"));
  EXPECT_EQ(Pcg64(123).state().state, Decimal("160078363690744033601390112987726904141"));
  EXPECT_EQ(Pcg64(123).state().increment, Decimal("17686443629577124697969402389330893883"));
}

TEST(Pcg64Test, DrawsLikeNumPy) {
  Pcg64 passkeys(123);
  std::array<int64_t, 5> drawn;
  for (int64_t& one : drawn) one = passkeys.Integers(10000, 100000);
  EXPECT_THAT(drawn, ElementsAre(11389, 71411, 63365, 14843, 91817));
}

TEST(Pcg64Test, GoesOnFromAStateWithAHalfUsedDraw) {
  Pcg64 generator(7);
  generator.Below(10);
  ASSERT_TRUE(generator.state().has_half);
  Pcg64 copy(generator.state());
  for (int i = 0; i < 20; ++i) EXPECT_EQ(generator.Below(1000), copy.Below(1000));
}

}  // namespace
}  // namespace mneme::random

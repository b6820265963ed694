#include "services/cli/policy_text.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(PolicyTextTest, EveryPolicyHasAForm) {
  EXPECT_TRUE(ParsePolicy("full")->has_full());
  const auto window = ParsePolicy("window:4,1024");
  ASSERT_TRUE(window.ok()) << window.status();
  EXPECT_EQ(window->window().sinks(), 4);
  EXPECT_EQ(window->window().recent(), 1024);
  EXPECT_FALSE(window->elastic());
  EXPECT_TRUE(ParsePolicy("full,elastic")->elastic());
  EXPECT_EQ(ParsePolicy("window:4,64,elastic")->window().recent(), 64);
  EXPECT_TRUE(ParsePolicy("window:4,64,elastic")->elastic());
  EXPECT_EQ(ParsePolicy("h2o:512")->h2o().budget().tokens(), 512);
  EXPECT_EQ(ParsePolicy("snapkv:1/4")->snapkv().budget().fraction(), 0.25);
  EXPECT_EQ(ParsePolicy("l2norm:0.5")->l2norm().budget().fraction(), 0.5);
  const auto namm = ParsePolicy("namm:reader,256");
  ASSERT_TRUE(namm.ok()) << namm.status();
  EXPECT_EQ(namm->namm().artifact(), "reader");
  EXPECT_EQ(namm->namm().cache_size(), 256);
  EXPECT_EQ(ParsePolicy("namm:reader")->namm().cache_size(), 0);
  const auto beacon = ParsePolicy("beacon:2,4,max=512");
  ASSERT_TRUE(beacon.ok()) << beacon.status();
  EXPECT_THAT(beacon->beacon().ratios(), ElementsAre(2, 4));
  EXPECT_EQ(beacon->beacon().max_beacons(), 512);
}

TEST(PolicyTextTest, AnythingElseIsRefusedWithTheForms) {
  for (const char* const wrong : {"",
                                  "full:1",
                                  "window",
                                  "window:4",
                                  "window:-1,5",
                                  "window:4,0",
                                  "window:4,5,6",
                                  "h2o",
                                  "h2o:",
                                  "h2o:0",
                                  "h2o:-3",
                                  "h2o:1/1",
                                  "h2o:2/1",
                                  "h2o:1/0",
                                  "h2o:x",
                                  "h2o:64,elastic",
                                  ",elastic",
                                  "snapkv:nan",
                                  "l2norm:1.5",
                                  "namm:",
                                  "namm:a,0",
                                  "namm:a,b",
                                  "namm:a,1,2",
                                  "beacon:",
                                  "beacon:x",
                                  "beacon:-1",
                                  "beacon:max=4",
                                  "beacon:4,max=0",
                                  "lru:4"}) {
    const auto parsed = ParsePolicy(wrong);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("window:SINKS,RECENT")) << wrong;
  }
}

}  // namespace
}  // namespace mneme::cli

#include "common/evolution/fitness.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::evolution {
namespace {

using ::testing::HasSubstr;

const BaseScores kBase = {{"lb/a", {{0, 0.5}, {1, 0.25}}}, {"b", {{7, 0.5}}}};

TEST(FitnessTest, TasksAreComparedWithTheBaseOnTheSameRequests) {
  const auto fitness = NormalisedFitness({{"lb/a", {.score = 50, .requests = {1}}}}, kBase);
  ASSERT_TRUE(fitness.ok()) << fitness.status();
  EXPECT_NEAR(fitness->fitness, 2, 1e-6);
  const auto all = NormalisedFitness({{"lb/a", {.score = 37.5}}, {"b", {.score = 1}}}, kBase);
  EXPECT_NEAR(all->by_task.at("lb/a"), 1, 1e-6);
  EXPECT_NEAR(all->by_task.at("b"), 2, 1e-6);
  EXPECT_NEAR(all->fitness, 1.5, 1e-6);
}

TEST(FitnessTest, WhatIsMissingIsNamed) {
  EXPECT_FALSE(NormalisedFitness({}, kBase).ok());
  EXPECT_FALSE(UnnormalisedFitness({}).ok());
  EXPECT_THAT(std::string(NormalisedFitness({{"c", {}}}, kBase).status().message()),
              HasSubstr("\"c\""));
  EXPECT_THAT(
      std::string(
          NormalisedFitness({{"b", {.score = 1, .requests = {8}}}}, kBase).status().message()),
      HasSubstr("request 8"));
}

}  // namespace
}  // namespace mneme::evolution

#include "services/executor/step_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::executor {
namespace {

using ::testing::ElementsAre;

TEST(PlanStepTest, EveryDecodeComesBeforeAnyChunk) {
  EXPECT_THAT(PlanStep({{1000}, {1}, {1}, {900}, {1}}, {.step_tokens = 16, .prefill_tokens = 100}),
              ElementsAre(3, 1, 1, 10, 1));
}

TEST(PlanStepTest, ShortPromptsPassALongOneWhichStillMoves) {
  EXPECT_THAT(PlanStep({{8000}, {50}, {40}}, {.step_tokens = 512}), ElementsAre(422, 50, 40));
  EXPECT_THAT(PlanStep({{8000}, {500}, {400}}, {.step_tokens = 512}), ElementsAre(128, 0, 384));
}

TEST(PlanStepTest, TheFirstPromptIsNeverStarvedByNewcomers) {
  int64_t left = 3000;
  int steps = 0;
  for (; left > 0; ++steps) left -= PlanStep({{left}, {100}, {100}, {100}, {100}}, {})[0];
  EXPECT_LE(steps, 24);
}

TEST(PlanStepTest, ChunksKeepToTheirRoomAndDecodesDoNotCare) {
  EXPECT_THAT(PlanStep({{1}, {300}, {1}}, {.step_tokens = 512, .prefill_tokens = 32}),
              ElementsAre(1, 32, 1));
}

TEST(PlanStepTest, RowsOfLogitsAreBounded) {
  EXPECT_THAT(PlanStep({{300, true}, {200, true}, {100}}, {.step_tokens = 512, .logit_rows = 150}),
              ElementsAre(128, 22, 100));
}

TEST(PlanStepTest, OneRunsAloneWithAllRoom) {
  EXPECT_THAT(PlanStep({{8000}}, {.step_tokens = 512}), ElementsAre(512));
  EXPECT_THAT(PlanStep({}, {}), ElementsAre());
  EXPECT_THAT(PlanStep({{2}}, {.step_tokens = 1}), ElementsAre(1));
}

}  // namespace
}  // namespace mneme::executor

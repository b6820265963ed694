// Activation Beacon's integers: the ratio rules, and that the window machine does not depend on how
// a sequence arrives. The published implementation's own passes: tests/golden/beacon.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "common/memory/beacon_pass.h"
#include "common/memory/beacon_ratio.h"
#include "common/weights/beacon_config.h"

namespace mneme::memory {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using weights::BeaconRatioMix;

BeaconSettings Settings(std::vector<int64_t> ratios, BeaconRatioMix mix, int64_t window = 2048) {
  return {.config = {.window = window, .stride = window, .ratios = std::move(ratios), .mix = mix}};
}

std::vector<int64_t> Choices(const BeaconSettings& settings, int count, int64_t num_tokens = 0) {
  BeaconRatioState state = FirstRatioState(settings);
  std::vector<int64_t> chosen;
  chosen.reserve(count);
  for (int i = 0; i < count; ++i) {
    chosen.push_back(*ChooseBeaconRatio(settings, i * settings.config.window, num_tokens, &state));
  }
  return chosen;
}

TEST(BeaconRatioTest, StepRandomDrawsThePublishedChoices) {
  EXPECT_THAT(Choices(Settings({2, 4, 8}, BeaconRatioMix::kStepRandom), 20),
              ElementsAre(2, 8, 4, 4, 4, 8, 2, 8, 2, 2, 4, 8, 8, 8, 8, 8, 4, 2, 8, 4));
  EXPECT_THAT(Choices(Settings({2, 4, 8, 16, 32}, BeaconRatioMix::kStepRandom), 10),
              ElementsAre(2, 16, 16, 8, 8, 32, 2, 16, 4, 2));
}

TEST(BeaconRatioTest, SequenceCyclesAndInstanceRandomStays) {
  EXPECT_THAT(Choices(Settings({8, 2, 4}, BeaconRatioMix::kSequence), 5),
              ElementsAre(8, 2, 4, 8, 2));
  EXPECT_THAT(Choices(Settings({2, 4, 8}, BeaconRatioMix::kInstanceRandom), 3),
              ElementsAre(2, 2, 2));
}

TEST(BeaconRatioTest, AdaptTakesTheSmallestCapacityThatFits) {
  // Qwen2-7B's limits.
  BeaconSettings settings = Settings({2, 4, 8}, BeaconRatioMix::kAdapt);
  settings.num_positions = 32768;
  settings.config.adapt_reserve = 1024;
  const auto ratio_of = [&](int64_t need) { return Choices(settings, 1, need - 1024)[0]; };
  EXPECT_EQ(ratio_of(63488), 2);
  EXPECT_EQ(ratio_of(63489), 4);
  EXPECT_EQ(ratio_of(124928), 4);
  EXPECT_EQ(ratio_of(124929), 8);
  EXPECT_EQ(ratio_of(1'000'000), 8);
}

TEST(BeaconRatioTest, RatiosThatDoNotDivideTheWindowAreLeftOut) {
  EXPECT_THAT(Choices(Settings({3, 64, 4}, BeaconRatioMix::kSequence, 32), 2), ElementsAre(4, 4));
  const BeaconSettings settings = Settings({3, 5}, BeaconRatioMix::kStepRandom, 32);
  BeaconRatioState state = FirstRatioState(settings);
  const auto none = ChooseBeaconRatio(settings, 0, 100, &state);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(none.status().message(), HasSubstr("3, 5"));
  // A list of one is not looked at.
  EXPECT_THAT(Choices(Settings({5}, BeaconRatioMix::kStepRandom, 32), 2), ElementsAre(5, 5));
}

TEST(BeaconRatioTest, InTrainingOneWindowAtMostStaysAsItIsAndNotTheLastTwo) {
  BeaconSettings settings = Settings({0, 4}, BeaconRatioMix::kStepRandom, 32);
  settings.training = true;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    settings.seed = seed;
    const std::vector<int64_t> chosen = Choices(settings, 5, 150);
    EXPECT_LE(std::count(chosen.begin(), chosen.end(), 0), 1);
    EXPECT_EQ(chosen[4], 4);
  }
}

// Feeds `num_tokens` tokens, of which calls of random lengths and passes of random sizes see some.
BeaconState Feed(const BeaconSettings& settings, int64_t num_tokens, uint32_t seed,
                 std::vector<std::pair<BeaconRowKind, int64_t>>* rows) {
  std::mt19937 random(seed);
  BeaconState state = FirstBeaconState(settings);
  int64_t known = 0;
  while (known < num_tokens) {
    known = seed == 0 ? num_tokens : std::min<int64_t>(num_tokens, known + 1 + random() % 50);
    while (state.end < known) {
      const int64_t max_rows = seed == 0 ? 1 << 20 : 1 + random() % 40;
      const auto pass = PlanBeaconPass(settings, state, known, max_rows);
      EXPECT_TRUE(pass.ok()) << pass.status();
      EXPECT_GE(pass->num_tokens, 1);
      EXPECT_LE(static_cast<int64_t>(pass->rows.size()),
                std::max<int64_t>(max_rows, 1 + pass->num_beacons));
      for (const BeaconRow& row : pass->rows) rows->emplace_back(row.kind, row.token);
      state = pass->after;
    }
  }
  return state;
}

TEST(BeaconPassTest, ResultsDoNotDependOnHowASequenceArrives) {
  BeaconSettings sinks = Settings({2, 4, 8}, BeaconRatioMix::kStepRandom, 32);
  sinks.config.sink_size = 3;
  BeaconSettings appended = sinks;
  appended.config.placement = weights::BeaconPlacement::kAppend;
  BeaconSettings expanded = appended;
  expanded.config.attention = weights::BeaconAttention::kStepExpansion;
  BeaconSettings skips = Settings({0, 4}, BeaconRatioMix::kSequence, 32);
  skips.skip_first = 11;
  skips.skip_last = 11 + 64;
  const BeaconSettings carried = Settings({5}, BeaconRatioMix::kStepRandom, 32);
  BeaconSettings bounded = sinks;
  bounded.max_beacons = 24;
  for (const BeaconSettings& settings : {sinks, appended, expanded, skips, carried, bounded}) {
    ASSERT_TRUE(CheckBeaconSettings(settings).ok());
    for (const int64_t num_tokens : {1, 31, 32, 33, 96, 150}) {
      std::vector<std::pair<BeaconRowKind, int64_t>> at_once;
      const BeaconState expected = Feed(settings, num_tokens, 0, &at_once);
      for (uint32_t seed = 1; seed < 10; ++seed) {
        std::vector<std::pair<BeaconRowKind, int64_t>> rows;
        BeaconState state = Feed(settings, num_tokens, seed, &rows);
        EXPECT_EQ(rows, at_once);
        // Memory is the same, though passes that end elsewhere use other lengths.
        state.rope_length = expected.rope_length;
        EXPECT_EQ(state, expected);
      }
    }
  }
}

TEST(BeaconPassTest, TheFirstRewrittenEntryIsBehindWhatStays) {
  const BeaconSettings settings = Settings({4}, BeaconRatioMix::kStepRandom, 32);
  BeaconState state = FirstBeaconState(settings);
  for (int window = 0; window < 3; ++window) {
    const auto pass = PlanBeaconPass(settings, state, 96, 1 << 20);
    ASSERT_TRUE(pass.ok());
    EXPECT_TRUE(pass->closes_window);
    EXPECT_EQ(pass->first_rewritten, 8 * window);
    EXPECT_EQ(pass->sources.front(), 8 * window + 4);
    EXPECT_EQ(pass->from_positions.front(), 8 * window + 4);
    EXPECT_EQ(pass->to_positions.front(), 8 * window);
    state = pass->after;
  }
}

TEST(BeaconPassTest, TheOldestBeaconsGoBeyondTheBoundAndTheOthersMoveUp) {
  BeaconSettings settings = Settings({4}, BeaconRatioMix::kStepRandom, 32);
  settings.config.sink_size = 2;
  settings.max_beacons = 20;
  ASSERT_TRUE(CheckBeaconSettings(settings).ok());
  BeaconState state = FirstBeaconState(settings);
  int64_t most = 0;
  for (int64_t window = 1; window <= 40; ++window) {
    const auto pass = PlanBeaconPass(settings, state, 32 * 40, 1 << 20);
    ASSERT_TRUE(pass.ok()) << pass.status();
    ASSERT_TRUE(pass->closes_window);
    const int64_t before = state.num_beacons;
    state = pass->after;
    most = std::max(most, pass->num_before + static_cast<int64_t>(pass->rows.size()));
    EXPECT_EQ(state.num_sink, 2);
    EXPECT_EQ(state.num_beacons, std::min<int64_t>(8 * window, 20));
    EXPECT_EQ(state.num_dropped, 8 * window - state.num_beacons);
    // The youngest of what was there is followed by the window's own, at the next positions.
    const int64_t dropped = before + 8 - state.num_beacons;
    const int64_t kept = before - dropped;
    for (int64_t i = 0; i < state.num_beacons; ++i) {
      const int64_t place = 2 + i - pass->first_source;
      if (place < 0) continue;  // stays as it is
      EXPECT_EQ(pass->to_positions[place], 2 + i);
      if (i < kept) {
        EXPECT_EQ(pass->sources[place], 2 + dropped + i);
        EXPECT_EQ(pass->from_positions[place], 2 + dropped + i);
      }
    }
  }
  EXPECT_LE(most, 2 + 20 + 32 + 8);
}

TEST(BeaconPassTest, GrowingRopeTurnsTheMemoryOncePerGrowth) {
  BeaconSettings settings = Settings({4}, BeaconRatioMix::kStepRandom, 32);
  settings.fixed_rope_length = 44;
  BeaconState state = FirstBeaconState(settings);
  auto pass = PlanBeaconPass(settings, state, 32, 1 << 20);  // 40 positions: within
  EXPECT_TRUE(pass->turned_positions.empty());
  state = pass->after;
  pass = PlanBeaconPass(settings, state, 64, 1 << 20);  // 8 + 40 positions
  EXPECT_EQ(pass->turned_positions.size(), 8u);
  EXPECT_EQ(pass->first_rewritten, 0);
  EXPECT_EQ(pass->after.rope_length, 48);
  state = pass->after;
  pass = PlanBeaconPass(settings, state, 65, 1 << 20);  // 16 + 1: below the largest so far
  EXPECT_TRUE(pass->turned_positions.empty());
  EXPECT_EQ(pass->after.rope_length, 48);
}

TEST(BeaconSettingsTest, ContradictionsAreRefused) {
  BeaconSettings settings = Settings({4}, BeaconRatioMix::kStepRandom, 32);
  EXPECT_TRUE(CheckBeaconSettings(settings).ok());
  BeaconSettings bad = settings;
  bad.config.stride = 16;
  EXPECT_EQ(CheckBeaconSettings(bad).code(), absl::StatusCode::kUnimplemented);
  bad = settings;
  bad.config.ratios.clear();
  EXPECT_EQ(CheckBeaconSettings(bad).code(), absl::StatusCode::kInvalidArgument);
  bad = settings;
  bad.config.attention = weights::BeaconAttention::kStepExpansion;
  EXPECT_EQ(CheckBeaconSettings(bad).code(), absl::StatusCode::kUnimplemented);
  bad = settings;
  bad.skip_last = 33;
  EXPECT_EQ(CheckBeaconSettings(bad).code(), absl::StatusCode::kInvalidArgument);
  bad = settings;
  bad.config.parallel_windows = 2;
  bad.config.ratios = {0, 4};
  EXPECT_EQ(CheckBeaconSettings(bad).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::memory

#include "common/memory/beacon_ratio.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status/status_macros.h"
#include "common/weights/rope.h"

namespace mneme::memory {
namespace {

using weights::BeaconAttention;
using weights::BeaconConfig;
using weights::BeaconPlacement;
using weights::BeaconRatioMix;

std::vector<int64_t> Candidates(const BeaconSettings& settings, int64_t start, int64_t num_tokens,
                                bool has_used_zero) {
  const BeaconConfig& config = settings.config;
  std::vector<int64_t> candidates;
  for (const int64_t ratio : config.ratios) {
    if (ratio > config.stride || (ratio > 0 && config.stride % ratio != 0)) continue;
    // A second window kept as it is, or one that nothing follows, would teach the beacons nothing.
    if (ratio == 0 && settings.training &&
        (has_used_zero || start + config.stride + config.window > num_tokens)) {
      continue;
    }
    candidates.push_back(ratio);
  }
  return candidates;
}

int64_t SmallestThatFits(const std::vector<int64_t>& candidates, const BeaconSettings& settings,
                         int64_t num_tokens) {
  const auto window = static_cast<double>(settings.config.window);
  const auto needed = static_cast<double>(num_tokens + settings.config.adapt_reserve);
  double best = std::numeric_limits<double>::infinity();
  std::optional<int64_t> chosen;
  for (const int64_t ratio : candidates) {
    const double capacity =
        ratio == 0 ? settings.num_positions
                   : (settings.num_positions - window) * static_cast<double>(ratio) + window;
    if (capacity >= needed && capacity < best) {
      best = capacity;
      chosen = ratio;
    }
  }
  return chosen.value_or(*std::max_element(candidates.begin(), candidates.end()));
}

}  // namespace

BeaconSettings MakeBeaconSettings(const weights::ModelConfig& model,
                                  const weights::BeaconConfig& config) {
  return {.config = config,
          .num_positions = static_cast<double>(model.context_length) * model.rope_scaling.factor,
          .fixed_rope_length = weights::FixedRopeLength(model)};
}

absl::Status CheckBeaconSettings(const BeaconSettings& settings) {
  const BeaconConfig& config = settings.config;
  RETURN_IF_ERROR(weights::CheckBeaconConfig(config));
  if (config.placement == BeaconPlacement::kInterleave &&
      config.attention == BeaconAttention::kStepExpansion && !settings.hide_first_states) {
    return absl::UnimplementedError("interleaved beacons have no step expansion");
  }
  if (config.mix == BeaconRatioMix::kAdapt && config.ratios.size() > 1 &&
      settings.num_positions <= static_cast<double>(config.window)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an adaptive beacon ratio needs more positions than a window has: ", settings.num_positions,
        ", window ", config.window));
  }
  if (settings.max_beacons < 0 ||
      (settings.max_beacons > 0 && (settings.training || config.parallel_windows > 1))) {
    return absl::UnimplementedError(
        "a bound of the beacons is 0 or more, and for one window at a time");
  }
  if (settings.skip_first < 0 || (settings.skip_first > 0 && config.sink_size > 0)) {
    return absl::InvalidArgumentError("skip_first must be 0 or more, and 0 beside a beacon sink");
  }
  if ((settings.skip_first > 0 || settings.skip_last.has_value()) && config.parallel_windows > 1) {
    return absl::UnimplementedError("parallel beacon windows can't skip tokens");
  }
  if (settings.skip_last.has_value() &&
      (*settings.skip_last < settings.skip_first ||
       (*settings.skip_last - settings.skip_first) % config.window != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "skip_last must lie a multiple of the window behind skip_first: ", *settings.skip_last,
        ", skip_first ", settings.skip_first, ", window ", config.window));
  }
  return absl::OkStatus();
}

BeaconRatioState FirstRatioState(const BeaconSettings& settings) {
  return {.generator = random::Pcg64(settings.seed).state()};
}

absl::StatusOr<int64_t> ChooseBeaconRatio(const BeaconSettings& settings, int64_t start,
                                          int64_t num_tokens, BeaconRatioState* state) {
  const BeaconConfig& config = settings.config;
  if (config.ratios.size() == 1) return config.ratios[0];
  if (state->fixed.has_value()) return *state->fixed;
  if (config.mix == BeaconRatioMix::kSequence && !state->cycle.empty()) {
    return state->cycle[state->next++ % static_cast<int64_t>(state->cycle.size())];
  }
  const std::vector<int64_t> candidates =
      Candidates(settings, start, num_tokens, state->has_used_zero);
  if (candidates.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "none of the beacon ratios divides the window: ", absl::StrJoin(config.ratios, ", "),
        "; window ", config.stride));
  }
  int64_t ratio = 0;
  switch (config.mix) {
    case BeaconRatioMix::kStepRandom:
    case BeaconRatioMix::kInstanceRandom: {
      random::Pcg64 generator(state->generator);
      ratio = candidates[generator.Below(static_cast<uint32_t>(candidates.size()))];
      state->generator = generator.state();
      if (config.mix == BeaconRatioMix::kInstanceRandom) state->fixed = ratio;
      break;
    }
    case BeaconRatioMix::kSequence:
      ratio = candidates[0];
      state->cycle = candidates;
      state->next = 1;
      break;
    case BeaconRatioMix::kAdapt:
      ratio = SmallestThatFits(candidates, settings, num_tokens);
      state->fixed = ratio;
      break;
  }
  state->has_used_zero |= ratio == 0;
  return ratio;
}

}  // namespace mneme::memory

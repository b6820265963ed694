#include "common/memory/beacon_policy.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/memory/kv_sequence.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention_layout.h"
#include "mneme/snapshot/v1/policy_state.pb.h"

namespace mneme::memory {
namespace {

using weights::BeaconRatioMix;

// Sequences are bounded, so that sizes are.
constexpr int64_t kMaxSequenceTokens = int64_t{1} << 20;

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

absl::string_view MixName(BeaconRatioMix mix) {
  switch (mix) {
    case BeaconRatioMix::kStepRandom:
      return "step-random";
    case BeaconRatioMix::kInstanceRandom:
      return "instance-random";
    case BeaconRatioMix::kSequence:
      return "sequence";
    case BeaconRatioMix::kAdapt:
      return "adapt";
  }
  return "";
}

class Beacons final : public MemoryPolicy {
 public:
  explicit Beacons(BeaconSettings settings) : settings_(std::move(settings)) {
    const std::vector<int64_t>& ratios = settings_.config.ratios;
    least_ratio_ = *std::min_element(ratios.begin(), ratios.end());
    for (const int64_t ratio : ratios) {
      if (ratio > 0 && (densest_ratio_ == 0 || ratio < densest_ratio_)) densest_ratio_ = ratio;
    }
  }

  std::string name() const override { return "beacon"; }

  std::string Describe() const override {
    const weights::BeaconConfig& config = settings_.config;
    std::string text = absl::StrCat("beacon(window=", config.window,
                                    ",ratios=", absl::StrJoin(config.ratios, "/"));
    if (config.ratios.size() > 1) absl::StrAppend(&text, ",mix=", MixName(config.mix));
    if (config.mix == BeaconRatioMix::kStepRandom ||
        config.mix == BeaconRatioMix::kInstanceRandom) {
      absl::StrAppend(&text, ",seed=", settings_.seed);
    }
    if (config.placement == weights::BeaconPlacement::kAppend) text += ",append";
    if (config.attention == weights::BeaconAttention::kStepExpansion) {
      absl::StrAppend(&text, ",step-expansion", config.attend_previous ? "+" : "-");
    }
    if (settings_.max_beacons > 0) absl::StrAppend(&text, ",max_beacons=", settings_.max_beacons);
    return absl::StrCat(text, ",sinks=", config.sink_size, ",weights=", settings_.weights_id, ")");
  }

  AttentionMask mask() const override { return {}; }
  AttentionStatistics statistics() const override { return AttentionStatistics::kNone; }
  bool shares_beginnings() const override { return false; }

  ChunkLayout LayOut(const KvSequence& sequence, int64_t waiting, int64_t room) const override {
    auto& state = static_cast<BeaconPolicyState&>(*sequence.state());
    absl::StatusOr<BeaconPass> pass =
        PlanBeaconPass(settings_, state.state(), sequence.num_tokens() + waiting, room);
    if (!pass.ok()) return {};  // can't be: BeaconPolicy has checked the ratios
    ChunkLayout layout{.num_tokens = pass->num_tokens};
    layout.pass = std::make_shared<const BeaconPass>(*std::move(pass));
    state.Plan(layout.pass);
    return layout;
  }

  Retention Retain(const KvSequence& sequence) const override {
    static_cast<BeaconPolicyState&>(*sequence.state()).Settle(sequence.num_tokens());
    return {};
  }

  // Positions are those of the memory: beacons, a window and its own beacons.
  int64_t MaxTokens(int64_t context_length) const override {
    const int64_t open = MostOpen(settings_.config.window);
    if (least_ratio_ == 0 || context_length <= open) {
      // As many as have room beside their beacons.
      const int64_t room = std::max<int64_t>(context_length - settings_.config.sink_size, 0);
      return densest_ratio_ == 0 ? room : room * densest_ratio_ / (densest_ratio_ + 1);
    }
    if (settings_.max_beacons > 0 && open + settings_.max_beacons <= context_length) {
      return kMaxSequenceTokens;
    }
    return std::min(kMaxSequenceTokens, (context_length - open) * least_ratio_);
  }

  std::unique_ptr<PolicyState> NewState(const KvShape&) const override {
    return std::make_unique<BeaconPolicyState>(&settings_, FirstBeaconState(settings_));
  }

  absl::StatusOr<std::unique_ptr<PolicyState>> RestoreState(const KvShape& shape,
                                                            absl::string_view bytes) const override;

  int64_t EstimatePeakPages(const KvShape& shape, int64_t num_tokens, int64_t) const override {
    const int64_t window = settings_.config.window;
    return PagesOf(std::min(MostClosed(num_tokens) + MostOpen(window), MostOpen(num_tokens))) *
           shape.num_heads();
  }

  int64_t EstimateResidentPages(const KvShape& shape, int64_t num_tokens) const override {
    return EstimatePeakPages(shape, num_tokens, num_tokens);
  }

 private:
  // Entries that `num_tokens` tokens of closed windows leave at most, the sink included.
  int64_t MostClosed(int64_t num_tokens) const {
    const int64_t beacons = least_ratio_ == 0 ? num_tokens : num_tokens / least_ratio_;
    return settings_.config.sink_size +
           (settings_.max_beacons == 0 ? beacons : std::min(beacons, settings_.max_beacons));
  }
  // Entries of tokens and their beacons.
  int64_t MostOpen(int64_t num_tokens) const {
    return settings_.config.sink_size + num_tokens +
           (densest_ratio_ == 0 ? 0 : num_tokens / densest_ratio_);
  }

  const BeaconSettings settings_;
  int64_t least_ratio_ = 0;
  int64_t densest_ratio_ = 0;  // the least that makes beacons; 0: none does
};

absl::Status Wrong(absl::string_view field, absl::string_view message) {
  return status::InvalidField(absl::StrCat("memory_policy.beacon.", field), message);
}

bool IsSane(const BeaconState& state, const BeaconSettings& settings) {
  constexpr int64_t kMost = int64_t{1} << 30;
  for (const int64_t number :
       {state.start, state.end, state.ratio, state.remainder, state.first_remainder, state.num_sink,
        state.num_beacons, state.num_raw, state.num_dropped, state.rope_length,
        state.ratios.next}) {
    if (number < 0 || number > kMost) return false;
  }
  const std::vector<int64_t>& ratios = settings.config.ratios;
  const auto is_known = [&](int64_t ratio) {
    return ratio == 0 || std::find(ratios.begin(), ratios.end(), ratio) != ratios.end();
  };
  return state.end >= state.start && state.end - state.start <= settings.config.window &&
         state.remainder < settings.config.window && state.first_remainder <= state.remainder &&
         is_known(state.ratio) && is_known(state.ratios.fixed.value_or(0)) &&
         std::all_of(state.ratios.cycle.begin(), state.ratios.cycle.end(), is_known);
}

absl::StatusOr<std::unique_ptr<PolicyState>> Beacons::RestoreState(const KvShape&,
                                                                   absl::string_view bytes) const {
  snapshot::v1::BeaconPolicyState stored;
  const absl::Status wrong =
      absl::InvalidArgumentError("a stored memory's beacon state is not one");
  if (!stored.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return wrong;
  BeaconState state{.start = stored.start(),
                    .end = stored.end(),
                    .is_closed = stored.is_closed(),
                    .ratio = stored.ratio(),
                    .remainder = stored.remainder(),
                    .first_remainder = stored.first_remainder(),
                    .num_sink = stored.num_sink(),
                    .num_beacons = stored.num_beacons(),
                    .num_raw = stored.num_raw(),
                    .has_sink = stored.has_sink(),
                    .num_dropped = stored.num_dropped(),
                    .rope_length = stored.rope_length()};
  BeaconRatioState& ratios = state.ratios;
  ratios.generator = {
      .state = absl::MakeUint128(stored.generator_state_high(), stored.generator_state_low()),
      .increment =
          absl::MakeUint128(stored.generator_increment_high(), stored.generator_increment_low()),
      .has_half = stored.has_generator_half(),
      .half = stored.generator_half()};
  if (stored.has_fixed_ratio()) ratios.fixed = stored.fixed_ratio();
  ratios.cycle.assign(stored.cycle().begin(), stored.cycle().end());
  ratios.next = stored.next();
  ratios.has_used_zero = stored.has_used_zero();
  if (!IsSane(state, settings_)) return wrong;
  return std::make_unique<BeaconPolicyState>(&settings_, std::move(state));
}

}  // namespace

void BeaconPolicyState::Settle(int64_t num_tokens) {
  if (planned_ == nullptr) return;
  // A step that failed has not advanced the sequence.
  if (planned_->after.end == num_tokens) state_ = planned_->after;
  planned_.reset();
}

std::unique_ptr<PolicyState> BeaconPolicyState::Clone() const {
  return std::make_unique<BeaconPolicyState>(settings_, state_);
}

std::optional<int64_t> BeaconPolicyState::CutTo(int64_t num_tokens) {
  std::optional<BeaconState> cut = CutBeaconState(*settings_, state_, num_tokens);
  if (!cut.has_value()) return std::nullopt;
  state_ = *std::move(cut);
  planned_.reset();
  return state_.num_entries();
}

absl::Status BeaconPolicyState::Check(const KvSequence& sequence) const {
  if (state_.end == sequence.num_tokens() && state_.num_entries() == sequence.length(0, 0)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a stored memory's beacon state is of other entries: ", state_.num_entries(),
                   " of ", sequence.length(0, 0)));
}

std::optional<PolicyState::Extent> BeaconPolicyState::extent() const {
  // Before the first window has closed, its closing moves everything; so does a rope that grows.
  const bool can_grow = settings_->fixed_rope_length != std::numeric_limits<int64_t>::max();
  // Once the oldest beacons have gone, the others move with every window that closes.
  const int64_t num_settled = state_.num_sink + (state_.num_dropped > 0 ? 0 : state_.num_beacons);
  return Extent{.num_entries = state_.num_entries(), .num_settled = can_grow ? 0 : num_settled};
}

std::string BeaconPolicyState::Serialise() const {
  snapshot::v1::BeaconPolicyState stored;
  stored.set_start(state_.start);
  stored.set_end(state_.end);
  stored.set_is_closed(state_.is_closed);
  stored.set_ratio(state_.ratio);
  stored.set_remainder(state_.remainder);
  stored.set_first_remainder(state_.first_remainder);
  stored.set_num_sink(state_.num_sink);
  stored.set_num_beacons(state_.num_beacons);
  stored.set_num_raw(state_.num_raw);
  stored.set_has_sink(state_.has_sink);
  stored.set_num_dropped(state_.num_dropped);
  stored.set_rope_length(state_.rope_length);
  const BeaconRatioState& ratios = state_.ratios;
  stored.set_generator_state_high(absl::Uint128High64(ratios.generator.state));
  stored.set_generator_state_low(absl::Uint128Low64(ratios.generator.state));
  stored.set_generator_increment_high(absl::Uint128High64(ratios.generator.increment));
  stored.set_generator_increment_low(absl::Uint128Low64(ratios.generator.increment));
  if (ratios.generator.has_half) stored.set_generator_half(ratios.generator.half);
  if (ratios.fixed.has_value()) stored.set_fixed_ratio(*ratios.fixed);
  for (const int64_t ratio : ratios.cycle) stored.add_cycle(ratio);
  stored.set_next(ratios.next);
  stored.set_has_used_zero(ratios.has_used_zero);
  return stored.SerializeAsString();
}

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> BeaconPolicy(BeaconSettings settings) {
  RETURN_IF_ERROR(CheckBeaconSettings(settings));
  if (settings.training || settings.overwrite_open_sink || settings.hide_first_states ||
      settings.config.mix == BeaconRatioMix::kAdapt) {
    // A ratio that follows the length of the first prompt would change when a sequence is
    // recomputed after more of it is known.
    return absl::UnimplementedError("this beacon mode is for training or comparison only");
  }
  const int64_t densest =
      settings.config.ratios.empty() ? 0 : std::ranges::min(settings.config.ratios);
  const int64_t of_window =
      densest == 0 ? settings.config.window : settings.config.window / densest;
  if (settings.max_beacons > 0 && settings.max_beacons < of_window) {
    return Wrong("max_beacons", absl::StrCat("must be 0, or at least what one window leaves, ",
                                             of_window, ": ", settings.max_beacons));
  }
  for (const int64_t ratio : settings.config.ratios) {
    if (ratio == 0 || (ratio <= settings.config.window && settings.config.window % ratio == 0)) {
      continue;
    }
    return Wrong("ratios", absl::StrCat("every ratio must be 0 or divide the window of ",
                                        settings.config.window, " tokens: ", ratio));
  }
  return std::make_shared<const Beacons>(std::move(settings));
}

absl::StatusOr<BeaconSettings> BeaconSettingsOf(const inference::v1::MemoryPolicy::Beacon& beacon,
                                                const BeaconSettings& defaults) {
  using Proto = inference::v1::MemoryPolicy::Beacon;
  constexpr int32_t kMost = 1 << 24;
  BeaconSettings settings = defaults;
  weights::BeaconConfig& config = settings.config;
  if (beacon.ratios().empty()) {
    return Wrong("ratios", "must name one ratio, or several to be used in turn");
  }
  config.ratios.clear();
  for (const int32_t ratio : beacon.ratios()) {
    if (ratio < 0 || ratio > kMost) {
      return Wrong("ratios", absl::StrCat("must be from 0 to ", kMost, ": ", ratio));
    }
    config.ratios.push_back(ratio);
  }
  if (beacon.window() < 0 || beacon.window() > kMost) {
    return Wrong("window",
                 absl::StrCat("must be from 0 (the model's) to ", kMost, ": ", beacon.window()));
  }
  if (beacon.window() > 0) config.window = config.stride = beacon.window();
  if (beacon.has_sinks()) {
    if (beacon.sinks() < 0 || beacon.sinks() > config.window) {
      return Wrong("sinks", absl::StrCat("must be from 0 to the window: ", beacon.sinks()));
    }
    config.sink_size = beacon.sinks();
  }
  if (beacon.max_beacons() < 0 || beacon.max_beacons() > kMost) {
    return Wrong("max_beacons",
                 absl::StrCat("must be from 0 (no bound) to ", kMost, ": ", beacon.max_beacons()));
  }
  settings.max_beacons = beacon.max_beacons();
  config.parallel_windows = 1;
  switch (beacon.mix()) {
    case Proto::MIX_UNSPECIFIED:
      config.mix = BeaconRatioMix::kSequence;
      break;
    case Proto::MIX_STEP_RANDOM:
      config.mix = BeaconRatioMix::kStepRandom;
      break;
    case Proto::MIX_INSTANCE_RANDOM:
      config.mix = BeaconRatioMix::kInstanceRandom;
      break;
    default:
      return Wrong("mix", absl::StrCat("is none that this executor knows: ", beacon.mix()));
  }
  if (beacon.has_seed()) settings.seed = beacon.seed();
  return settings;
}

}  // namespace mneme::memory

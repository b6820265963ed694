// The beacon_* keys of a checkpoint trained with Activation Beacon (Zhang et al. 2024, arXiv
// 2401.03462): how its context is cut into windows, where beacons go, and which projections they
// have of their own.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace mneme::weights {

// How the compression ratio of a window is chosen from the configured ones.
enum class BeaconRatioMix {
  kStepRandom,      // a draw per window
  kInstanceRandom,  // a draw per sequence
  kSequence,        // one after the other
  kAdapt,           // "adapt-F": the smallest that lets the sequence and F more tokens fit
};

enum class BeaconPlacement {
  kInterleave,  // a beacon behind each unit of `ratio` tokens
  kAppend,      // all behind the last token of the window
};

enum class BeaconAttention {
  kFullCoverage,   // causal
  kStepExpansion,  // beacon i sees the window's first i units only
};

enum class BeaconEmbedInit { kEos, kBos };

struct BeaconConfig {
  int64_t window = 1024;                            // W, raw tokens
  int64_t stride = 1024;                            // S; only S = W exists
  std::vector<int64_t> ratios = {2, 4, 8, 16, 32};  // 0: the window stays as it is
  BeaconRatioMix mix = BeaconRatioMix::kStepRandom;
  int64_t adapt_reserve = 0;  // F of "adapt-F", tokens
  BeaconPlacement placement = BeaconPlacement::kInterleave;
  BeaconAttention attention = BeaconAttention::kFullCoverage;
  bool attend_previous = true;  // step expansion: a beacon sees the window's earlier ones
  int64_t sink_size = 0;        // first states of the sequence that stay
  int64_t parallel_windows = 1;
  BeaconEmbedInit embed_init = BeaconEmbedInit::kEos;
  // Which projections beacons have of their own; the others are the ordinary ones.
  bool has_q = false;
  bool has_k = false;
  bool has_v = false;
  bool has_o = false;
};

// Returns the beacon settings of a config.json, nothing where it has no beacon_* key.
// INVALID_ARGUMENT: a key of a wrong type or value. UNIMPLEMENTED: what the published
// implementation offers but can't run either (segmentation, stride below window).
absl::StatusOr<std::optional<BeaconConfig>> ParseBeaconConfig(absl::string_view config_json);

// Returns INVALID_ARGUMENT or UNIMPLEMENTED, as above, for settings that contradict each other.
absl::Status CheckBeaconConfig(const BeaconConfig& config);

}  // namespace mneme::weights

// How Activation Beacon chooses the compression ratio of a window (Zhang et al. 2024, arXiv
// 2401.03462, and the published implementation): from a list, by one of four rules.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/random/pcg64.h"
#include "common/weights/beacon_config.h"
#include "common/weights/model_config.h"

namespace mneme::memory {

// How a sequence is compressed: the checkpoint's settings, or a session's own, and what a caller
// asks for beyond them.
struct BeaconSettings {
  weights::BeaconConfig config;
  // P: positions that the model was made for, rope scaling included. For adapt.
  double num_positions = 0;
  // Positions from here on change the frequencies of all (weights::FixedRopeLength).
  int64_t fixed_rope_length = std::numeric_limits<int64_t>::max();
  uint64_t seed = 42;  // of the random rules
  // The first tokens stay uncompressed, as the sink; 0: none.
  int64_t skip_first = 0;
  // From this token on nothing is compressed; less skip_first a multiple of the window.
  std::optional<int64_t> skip_last;
  // The last window of a sequence has no beacons, since nobody would read them. Every pass must
  // then be planned with the whole sequence known.
  bool training = false;

  // Entries that closed windows leave at most, the sink not counted: when a window closes, the
  // oldest go beyond it and the others move up. Not of the publication, whose memory grows with the
  // text until the context is full. 0: no bound.
  int64_t max_beacons = 0;

  // Which beacon weights the model has: part of what a memory depends on.
  std::string weights_id;

  // What the published implementation does and should not, for comparison with it.
  // While no window has closed, each pass makes its own first states the sink, beside their places.
  bool overwrite_open_sink = false;
  // Interleaved beacons with step expansion: the first two states of the window are hidden from all
  // others, not the beacons. That mode exists in no other form.
  bool hide_first_states = false;
};

// Returns the settings of a model's sequences; `config` is its own or another that fits it.
BeaconSettings MakeBeaconSettings(const weights::ModelConfig& model,
                                  const weights::BeaconConfig& config);

// INVALID_ARGUMENT or UNIMPLEMENTED: settings that contradict each other.
absl::Status CheckBeaconSettings(const BeaconSettings& settings);

// What choosing remembers between the windows of a sequence.
struct BeaconRatioState {
  random::Pcg64::State generator;
  std::optional<int64_t> fixed;  // instance-random, adapt: the choice
  std::vector<int64_t> cycle;    // sequence: the candidates
  int64_t next = 0;              // sequence: windows that have got a ratio
  bool has_used_zero = false;

  bool operator==(const BeaconRatioState&) const = default;
};

// Returns the state before the first window.
BeaconRatioState FirstRatioState(const BeaconSettings& settings);

// Returns the ratio of the window whose first token is `start`, while `num_tokens` tokens of the
// sequence are known. A list of one is taken as it is; else ratios that don't divide the window are
// left out. INVALID_ARGUMENT: none is left.
absl::StatusOr<int64_t> ChooseBeaconRatio(const BeaconSettings& settings, int64_t start,
                                          int64_t num_tokens, BeaconRatioState* state);

}  // namespace mneme::memory

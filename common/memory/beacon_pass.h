// Activation Beacon as integers: which tokens and beacons the next pass through the network takes,
// at which positions, what they see, and what of the memory is left afterwards (Zhang et al. 2024,
// arXiv 2401.03462). Knows neither tensors nor token ids.
//
// A sequence's memory is, in every layer and head, [sink | beacon | raw]: entries that stay for
// good, the beacons of closed windows, and the states of the window that is open, its beacons
// among them. Positions are indices into the memory, not into the text: what extends the context.
//
//   BeaconState state = FirstBeaconState(settings);
//   while (state.end < num_tokens) {
//     ASSIGN_OR_RETURN(BeaconPass pass, PlanBeaconPass(settings, state, num_tokens, room));
//     RETURN_IF_ERROR(sequence.Reserve(pass.room(), pass.first_rewritten));
//     … run pass.rows behind the memory, then rearrange it as pass.sources says …
//     state = std::move(pass.after);
//   }
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/beacon_ratio.h"

namespace mneme::memory {

// Everything that decides how a sequence goes on, beside the entries themselves. A value.
struct BeaconState {
  int64_t start = 0;  // first token of the open window
  int64_t end = 0;    // tokens processed
  bool is_closed = true;
  int64_t ratio = 0;      // of the open window, 0 where its beacons come at its end or not at all
  int64_t remainder = 0;  // tokens since the last beacon, u
  int64_t first_remainder = 0;  // u at the start of the window
  // Entries in memory, per layer and head.
  int64_t num_sink = 0;
  int64_t num_beacons = 0;
  int64_t num_raw = 0;
  bool has_sink = false;    // it is there, and stays
  int64_t num_dropped = 0;  // beacons that went because of settings.max_beacons
  BeaconRatioState ratios;
  // The largest position ever used, plus one: what rope scalings that grow follow.
  int64_t rope_length = 0;

  int64_t num_entries() const { return num_sink + num_beacons + num_raw; }
  bool operator==(const BeaconState&) const = default;
};

BeaconState FirstBeaconState(const BeaconSettings& settings);

enum class BeaconRowKind : uint8_t {
  kToken,
  kBeacon,
  kReplica,  // parallel windows: a beacon again, for the windows behind its own
};

struct BeaconRow {
  BeaconRowKind kind = BeaconRowKind::kToken;
  int64_t token = -1;   // index of a token in the sequence
  int64_t origin = -1;  // of a replica: the row of its beacon
  int64_t position = 0;
};

// One pass through the network.
struct BeaconPass {
  std::vector<BeaconRow> rows;
  int64_t num_tokens = 0;
  int64_t num_beacons = 0;  // replicas not counted
  int64_t num_before = 0;   // entries of the memory that it goes behind
  bool closes_window = false;
  std::vector<int64_t> ratios;   // those chosen in it
  std::optional<int64_t> ratio;  // of its window, where it has one and that is chosen

  // Which columns each row sees; a column is an entry of the memory or, from num_before on, of the
  // pass. Empty: causal, and so is what lies before first_column. Else
  // [rows, num_before + rows - first_column], 1 where visible; later rows are never visible.
  std::vector<uint8_t> visible;
  int64_t first_column = 0;

  // Columns of `visible`.
  int64_t num_columns() const {
    return num_before + static_cast<int64_t>(rows.size()) - first_column;
  }

  // The memory afterwards: entries below `first_source` stay as they are, entry first_source + i
  // becomes what column sources[i] is, its key turned from position from_positions[i] to
  // to_positions[i]; the rest is forgotten. Where `rearranges` is false all entries stay.
  bool rearranges = false;
  int64_t first_source = 0;
  std::vector<int64_t> sources;
  std::vector<int64_t> from_positions;
  std::vector<int64_t> to_positions;

  // Where positions pass settings.fixed_rope_length for the first time or go beyond the last time,
  // the keys of the memory are turned before the pass: those at these positions, from the
  // frequencies of length rope_length_before to those of after.rope_length. Empty: nothing to turn.
  std::vector<int64_t> turned_positions;
  int64_t rope_length_before = 0;

  // The first entry that the pass writes in the memory, before or after it; for
  // KvSequence::Reserve.
  int64_t first_rewritten = std::numeric_limits<int64_t>::max();

  BeaconState after;

  // Entries that need room behind the memory.
  int64_t room() const {
    return std::max(static_cast<int64_t>(rows.size()), after.num_entries() - num_before);
  }
};

// Plans the next pass of a sequence of which `num_tokens` tokens are known, more than state.end. A
// pass ends with its window at the latest, and has at most `max_rows` rows, but at least one token
// and the beacon behind it. Codes as ChooseBeaconRatio.
absl::StatusOr<BeaconPass> PlanBeaconPass(const BeaconSettings& settings, const BeaconState& state,
                                          int64_t num_tokens, int64_t max_rows);

// Returns the state that the sequence had at its first `num_tokens` tokens, where the entries that
// it had then are still there: from the start of the open window on. A ratio drawn since stays.
std::optional<BeaconState> CutBeaconState(const BeaconSettings& settings, const BeaconState& state,
                                          int64_t num_tokens);

// Returns the rotary position of entry `index` of the memory.
int64_t BeaconEntryPosition(const BeaconSettings& settings, const BeaconState& state,
                            int64_t index);
// Says whether entry `index` of the raw segment, counted from its start, is a beacon.
bool IsOpenBeacon(const BeaconState& state, int64_t index);

// Returns the target of each row: the token behind it, -100 for beacons and where there is none.
// `labels` are those of the whole sequence, not shifted.
std::vector<int64_t> BeaconTargets(const BeaconPass& pass, absl::Span<const int64_t> labels);

}  // namespace mneme::memory

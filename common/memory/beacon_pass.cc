#include "common/memory/beacon_pass.h"

#include <algorithm>
#include <utility>

#include "common/status/status_macros.h"

namespace mneme::memory {
namespace {

using weights::BeaconAttention;
using weights::BeaconConfig;
using weights::BeaconPlacement;

// Plans one pass; the steps are called in order.
class Planner {
 public:
  Planner(const BeaconSettings& settings, const BeaconState& state, int64_t num_tokens,
          int64_t max_rows)
      : settings_(settings),
        config_(settings.config),
        state_(state),
        num_tokens_(num_tokens),
        max_rows_(std::max<int64_t>(max_rows, 1)) {
    pass_.num_before = state.num_entries();
    pass_.after = state;
  }

  absl::StatusOr<BeaconPass> Plan() {
    if (state_.start < settings_.skip_first) {
      PlanPlain(settings_.skip_first);
      if (pass_.after.end == settings_.skip_first) {
        pass_.closes_window = true;
        pass_.after.start = pass_.after.end;
        pass_.after.num_sink = pass_.after.num_raw;
        pass_.after.num_raw = 0;
      }
      return std::move(pass_);
    }
    if (settings_.skip_last.has_value() && state_.start >= *settings_.skip_last) {
      PlanPlain(state_.start + config_.window);
      pass_.after.start = pass_.after.end;
      return std::move(pass_);
    }
    if (IsParallel()) {
      RETURN_IF_ERROR(PlanParallel());
    } else if (config_.placement == BeaconPlacement::kInterleave) {
      RETURN_IF_ERROR(PlanInterleaved());
    } else {
      RETURN_IF_ERROR(PlanAppended());
    }
    Rearrange();
    return std::move(pass_);
  }

 private:
  int64_t window_end() const { return state_.start + config_.window; }
  int64_t num_rows() const { return static_cast<int64_t>(pass_.rows.size()); }
  // Where the open window begins in memory: its entries are behind it, those before stay.
  int64_t window_column() const { return state_.num_sink + state_.num_beacons; }
  // The sink is still to come.
  bool lacks_sink() const {
    return config_.sink_size > 0 && state_.num_sink == 0 && state_.num_beacons == 0 &&
           !state_.has_sink;
  }

  void AddToken(int64_t position) {
    pass_.rows.push_back({.kind = BeaconRowKind::kToken,
                          .token = state_.end + pass_.num_tokens,
                          .position = position});
    ++pass_.num_tokens;
  }
  void AddBeacon(int64_t position) {
    pass_.rows.push_back({.kind = BeaconRowKind::kBeacon, .position = position});
    ++pass_.num_beacons;
  }

  absl::StatusOr<int64_t> Choose(int64_t start) {
    ASSIGN_OR_RETURN(const int64_t ratio,
                     ChooseBeaconRatio(settings_, start, num_tokens_, &pass_.after.ratios));
    pass_.ratios.push_back(ratio);
    pass_.ratio = ratio;
    return ratio;
  }

  // Takes the tokens before `end` without beacons.
  void PlanPlain(int64_t end) {
    end = std::min({end, num_tokens_, state_.end + max_rows_});
    for (int64_t t = state_.end; t < end; ++t) AddToken(state_.num_entries() + t - state_.end);
    NoteTokens();
    pass_.after.ratio = 0;
    pass_.after.num_raw += num_rows();
  }

  void NoteTokens() {
    pass_.after.end = state_.end + pass_.num_tokens;
    for (const BeaconRow& row : pass_.rows) {
      pass_.after.rope_length = std::max(pass_.after.rope_length, row.position + 1);
    }
    // Appended beacons may lie before the last token; the memory counts in any case.
    pass_.after.rope_length = std::max(pass_.after.rope_length, pass_.num_before);
  }

  // The last window of a training sequence, full or not.
  bool IsLastInTraining(int64_t end) const { return settings_.training && end == num_tokens_; }

  absl::Status PlanInterleaved() {
    const int64_t end = std::min(window_end(), num_tokens_);
    const bool is_last = IsLastInTraining(end);
    BeaconState& after = pass_.after;
    if (state_.is_closed) {
      after.ratio = 0;
      if (!is_last) {
        ASSIGN_OR_RETURN(after.ratio, Choose(state_.start));
      }
      after.first_remainder = state_.remainder;
    } else if (!is_last) {
      pass_.ratio = state_.ratio;
    }
    const int64_t ratio = after.ratio;
    const int64_t base = window_column();
    const bool is_expanded = config_.attention == BeaconAttention::kStepExpansion;
    const auto position = [&] {
      const int64_t index = state_.num_raw + num_rows();
      // Tokens keep consecutive positions; a beacon has that of the token behind it.
      const int64_t earlier =
          is_expanded && ratio > 0 ? (index + after.first_remainder) / (ratio + 1) : 0;
      return base + index - earlier;
    };
    for (int64_t t = state_.end; t < end; ++t) {
      const bool ends_unit = ratio > 0 && after.remainder + 1 == ratio;
      if (t > state_.end && num_rows() + 1 + (ends_unit ? 1 : 0) > max_rows_) break;
      AddToken(position());
      if (ratio == 0) continue;
      ++after.remainder;
      if (!ends_unit) continue;
      AddBeacon(position());
      after.remainder = 0;
    }
    NoteTokens();
    pass_.closes_window = after.end == window_end() && !is_last;
    if (is_expanded) HideFirstStates();
    return absl::OkStatus();
  }

  void HideFirstStates() {
    StartMask(window_column());
    const int64_t columns = state_.num_raw + num_rows();
    for (int64_t r = 0; r < num_rows(); ++r) {
      const int64_t own = state_.num_raw + r;
      for (int64_t c = 0; c < columns; ++c) Show(r, c, c <= own && (c >= 2 || c == own));
    }
  }

  absl::Status PlanAppended() {
    int64_t end = std::min({window_end(), num_tokens_, state_.end + max_rows_});
    const bool is_last = IsLastInTraining(std::min(window_end(), num_tokens_));
    int64_t num_beacons = 0;
    if (end == window_end() && !is_last) {
      const BeaconRatioState before = pass_.after.ratios;
      ASSIGN_OR_RETURN(const int64_t ratio, Choose(state_.start));
      num_beacons = ratio == 0 ? 0 : config_.window / ratio;
      const int64_t excess = end - state_.end + num_beacons - max_rows_;
      if (excess > 0 && end - state_.end > 1) {
        // The beacons come with the next pass.
        end -= std::min(excess, end - state_.end - 1);
        pass_.after.ratios = before;
        pass_.ratios.clear();
        pass_.ratio.reset();
        num_beacons = 0;
      }
    }
    pass_.after.ratio = 0;
    for (int64_t t = state_.end; t < end; ++t) AddToken(pass_.num_before + t - state_.end);
    const bool is_expanded = config_.attention == BeaconAttention::kStepExpansion;
    for (int64_t i = 1; i <= num_beacons; ++i) {
      const int64_t seen = i * *pass_.ratio;
      AddBeacon(!is_expanded ? pass_.num_before + num_rows()
                             : window_column() + seen - 1 + (config_.attend_previous ? i : 1));
    }
    NoteTokens();
    pass_.closes_window = pass_.ratio.has_value();
    if (is_expanded && num_beacons > 0) ExpandSteps(*pass_.ratio);
    return absl::OkStatus();
  }

  // Beacon i sees the window's tokens 1 to i * ratio, itself, and maybe earlier beacons.
  void ExpandSteps(int64_t ratio) {
    StartMask(window_column());
    const int64_t columns = state_.num_raw + num_rows();
    const int64_t first_beacon = columns - pass_.num_beacons;
    for (int64_t r = 0; r < num_rows(); ++r) {
      const int64_t own = state_.num_raw + r;
      for (int64_t c = 0; c < columns; ++c) {
        bool is_visible = c <= own;
        if (own >= first_beacon && c != own) {
          is_visible &=
              c < first_beacon ? c < (own - first_beacon + 1) * ratio : config_.attend_previous;
        }
        Show(r, c, is_visible);
      }
    }
  }

  bool IsParallel() const {
    const int64_t tokens = config_.parallel_windows * config_.window;
    const int64_t waiting = num_tokens_ - state_.end;
    return config_.parallel_windows > 1 && state_.is_closed && state_.remainder == 0 &&
           (settings_.training ? waiting > tokens : waiting >= tokens) && max_rows_ > 2 * tokens;
  }

  // Several windows in one pass: each sees itself and, instead of the earlier ones, replicas of
  // their beacons.
  absl::Status PlanParallel() {
    // A sink that the first window leaves takes its places in what the others see.
    const int64_t shift = lacks_sink() ? config_.sink_size : 0;
    const int64_t last = config_.parallel_windows - 1;
    std::vector<int64_t> block;    // per row: the window that its own block is the beginning of
    std::vector<bool> is_replica;  // per row
    int64_t kept = 0;              // beacons of earlier windows
    for (int64_t w = 0; w <= last; ++w) {
      ASSIGN_OR_RETURN(const int64_t ratio, Choose(state_.start + w * config_.window));
      const int64_t base = pass_.num_before + kept + (w == 0 ? 0 : shift);
      std::vector<int64_t> beacons;
      int64_t index = 0;
      int64_t unit = 0;
      for (int64_t t = 0; t < config_.window; ++t) {
        AddToken(base + index++);
        if (++unit < ratio) continue;
        unit = 0;
        beacons.push_back(num_rows());
        AddBeacon(base + index++);
      }
      pass_.after.remainder = unit;
      if (w < last) {
        for (const int64_t origin : beacons) {
          pass_.rows.push_back({.kind = BeaconRowKind::kReplica,
                                .origin = origin,
                                .position = pass_.num_before + shift + kept++});
        }
      }
      while (static_cast<int64_t>(block.size()) < num_rows()) {
        is_replica.push_back(pass_.rows[block.size()].kind == BeaconRowKind::kReplica);
        block.push_back(is_replica.back() ? w + 1 : w);
      }
    }
    NoteTokens();
    pass_.after.ratio = 0;
    pass_.after.start += last * config_.window;
    pass_.closes_window = true;
    StartMask(pass_.num_before);
    for (int64_t r = 0; r < num_rows(); ++r) {
      for (int64_t c = 0; c <= r; ++c) {
        const bool is_own = block[r] == block[c];
        Show(r, c, is_own || (is_replica[c] && block[c] <= block[r]) || c < shift);
      }
    }
    return absl::OkStatus();
  }

  void StartMask(int64_t first_column) {
    pass_.first_column = first_column;
    num_columns_ = pass_.num_before + num_rows() - first_column;
    pass_.visible.assign(num_rows() * num_columns_, 0);
  }
  void Show(int64_t row, int64_t column, bool is_visible) {
    pass_.visible[row * num_columns_ + column] = is_visible ? 1 : 0;
  }

  // Says whether a column from the window's first on becomes a beacon of the closed window.
  bool IsKept(int64_t column) const {
    if (pass_.ratio == 0) return true;  // the window stays as it is
    if (column < pass_.num_before) return IsOpenBeacon(state_, column - window_column());
    return pass_.rows[column - pass_.num_before].kind == BeaconRowKind::kBeacon;
  }

  // Works out the memory after the pass.
  void Rearrange() {
    BeaconState& after = pass_.after;
    const int64_t num_columns = pass_.num_before + num_rows();
    std::vector<int64_t> sink, beacons, raw;
    for (int64_t c = 0; c < state_.num_sink; ++c) sink.push_back(c);
    for (int64_t c = state_.num_sink; c < window_column(); ++c) beacons.push_back(c);
    if (settings_.overwrite_open_sink && config_.sink_size > 0) {
      if (state_.num_beacons == 0) {
        sink.clear();
        for (int64_t i = 0; i < std::min(config_.sink_size, num_rows()); ++i) {
          sink.push_back(pass_.num_before + i);
        }
      }
    } else if (lacks_sink() && pass_.closes_window) {
      for (int64_t c = 0; c < std::min(config_.sink_size, num_columns); ++c) sink.push_back(c);
      after.has_sink = true;
    }
    for (int64_t c = window_column(); c < num_columns; ++c) {
      if (!pass_.closes_window) {
        raw.push_back(c);
      } else if (IsKept(c)) {
        beacons.push_back(c);
      }
    }
    if (settings_.max_beacons > 0 && pass_.closes_window) {
      const int64_t excess = static_cast<int64_t>(beacons.size()) - settings_.max_beacons;
      if (excess > 0) {
        beacons.erase(beacons.begin(), beacons.begin() + excess);
        after.num_dropped += excess;
      }
    }
    after.num_sink = static_cast<int64_t>(sink.size());
    after.num_beacons = static_cast<int64_t>(beacons.size());
    after.num_raw = static_cast<int64_t>(raw.size());
    after.is_closed = pass_.closes_window;
    if (pass_.closes_window) {
      after.start += config_.window;
      after.ratio = 0;
    }

    std::vector<int64_t> sources = std::move(sink);
    sources.insert(sources.end(), beacons.begin(), beacons.end());
    sources.insert(sources.end(), raw.begin(), raw.end());
    const auto count = static_cast<int64_t>(sources.size());
    const auto from = [&](int64_t c) {
      return c < pass_.num_before ? BeaconEntryPosition(settings_, state_, c)
                                  : pass_.rows[c - pass_.num_before].position;
    };
    int64_t first = 0;
    while (first < count && sources[first] == first &&
           from(first) == BeaconEntryPosition(settings_, after, first)) {
      ++first;
    }
    pass_.rearranges = first < count || count < num_columns;
    pass_.first_source = first;
    if (!pass_.rearranges) return;
    for (int64_t i = first; i < count; ++i) {
      pass_.sources.push_back(sources[i]);
      pass_.from_positions.push_back(from(sources[i]));
      pass_.to_positions.push_back(BeaconEntryPosition(settings_, after, i));
    }
  }

  const BeaconSettings& settings_;
  const BeaconConfig& config_;
  const BeaconState& state_;
  const int64_t num_tokens_;
  const int64_t max_rows_;
  BeaconPass pass_;
  int64_t num_columns_ = 0;  // of the mask
};

}  // namespace

BeaconState FirstBeaconState(const BeaconSettings& settings) {
  return {.ratios = FirstRatioState(settings)};
}

absl::StatusOr<BeaconPass> PlanBeaconPass(const BeaconSettings& settings, const BeaconState& state,
                                          int64_t num_tokens, int64_t max_rows) {
  if (state.end >= num_tokens) return absl::InvalidArgumentError("no tokens wait for a pass");
  ASSIGN_OR_RETURN(BeaconPass pass, Planner(settings, state, num_tokens, max_rows).Plan());
  pass.rope_length_before = state.rope_length;
  if (pass.after.rope_length > std::max(state.rope_length, settings.fixed_rope_length)) {
    for (int64_t i = 0; i < pass.num_before; ++i) {
      pass.turned_positions.push_back(BeaconEntryPosition(settings, state, i));
    }
  }
  if (!pass.turned_positions.empty()) {
    pass.first_rewritten = 0;
  } else if (pass.rearranges) {
    pass.first_rewritten = pass.first_source;
  }
  return pass;
}

std::optional<BeaconState> CutBeaconState(const BeaconSettings& settings, const BeaconState& state,
                                          int64_t num_tokens) {
  const bool has_grown = state.rope_length > settings.fixed_rope_length;
  if (state.is_closed || num_tokens < state.start || num_tokens > state.end || has_grown ||
      settings.overwrite_open_sink) {
    return std::nullopt;
  }
  BeaconState cut = state;
  cut.end = num_tokens;
  cut.num_raw = num_tokens - state.start;
  if (state.ratio > 0) {
    const int64_t in_units = state.first_remainder + num_tokens - state.start;
    cut.num_raw += in_units / state.ratio;
    cut.remainder = in_units % state.ratio;
  }
  return cut;
}

int64_t BeaconEntryPosition(const BeaconSettings& settings, const BeaconState& state,
                            int64_t index) {
  const int64_t base = state.num_sink + state.num_beacons;
  if (index < base || state.ratio == 0 ||
      settings.config.attention != BeaconAttention::kStepExpansion) {
    return index;
  }
  return index - (index - base + state.first_remainder) / (state.ratio + 1);
}

bool IsOpenBeacon(const BeaconState& state, int64_t index) {
  if (state.ratio == 0) return false;
  return index % (state.ratio + 1) == state.ratio - state.first_remainder;
}

std::vector<int64_t> BeaconTargets(const BeaconPass& pass, absl::Span<const int64_t> labels) {
  constexpr int64_t kIgnored = -100;
  std::vector<int64_t> targets;
  targets.reserve(pass.rows.size());
  for (const BeaconRow& row : pass.rows) {
    const auto next = static_cast<size_t>(row.token + 1);
    const bool has_target = row.kind == BeaconRowKind::kToken && next < labels.size();
    targets.push_back(has_target ? labels[next] : kIgnored);
  }
  return targets;
}

}  // namespace mneme::memory

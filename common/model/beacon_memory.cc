#include "common/model/beacon_memory.h"

#include <numeric>
#include <utility>
#include <vector>

#include "common/status/status_macros.h"

namespace mneme::model {

absl::Status TurnMemory(const RotaryTables& rotary, const memory::BeaconPass& pass,
                        memory::KvSequence* sequence) {
  if (pass.turned_positions.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(auto table, rotary.TurnTable({.from_positions = pass.turned_positions,
                                                 .from_length = pass.rope_length_before,
                                                 .to_positions = pass.turned_positions,
                                                 .to_length = pass.after.rope_length}));
  std::vector<int64_t> sources(pass.turned_positions.size());
  std::iota(sources.begin(), sources.end(), 0);
  return sequence->Rearrange(
      {.sources = sources, .cos = std::move(table.first), .sin = std::move(table.second)});
}

absl::Status RearrangeMemory(const RotaryTables& rotary, const memory::BeaconPass& pass,
                             memory::KvSequence* sequence) {
  if (!pass.rearranges) return absl::OkStatus();
  ASSIGN_OR_RETURN(auto table, rotary.TurnTable({.from_positions = pass.from_positions,
                                                 .from_length = pass.after.rope_length,
                                                 .to_positions = pass.to_positions,
                                                 .to_length = pass.after.rope_length}));
  return sequence->Rearrange({.first = pass.first_source,
                              .sources = pass.sources,
                              .cos = std::move(table.first),
                              .sin = std::move(table.second)});
}

}  // namespace mneme::model

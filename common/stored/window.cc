#include "common/stored/window.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status/status_macros.h"
#include "common/stored/chunk_layout.h"
#include "common/stored/runs.h"
#include "kernels/paged_attention_layout.h"

namespace mneme::stored {
namespace {

using kernels::kPageEntries;

// How many entries every head has had.
int64_t NumEntriesOf(const v1::Manifest& manifest) {
  return static_cast<int64_t>(manifest.num_entries() > 0 ? manifest.num_entries()
                                                         : manifest.num_tokens());
}

// What is left of `length` entries when whole pages are given back.
EntryRuns Kept(const Window& window, int64_t length) {
  const int64_t unseen_end = length - window.recent + 1;  // query `length` sees this one
  const int64_t begin = (window.sinks + kPageEntries - 1) / kPageEntries * kPageEntries;
  const int64_t end = unseen_end / kPageEntries * kPageEntries;
  if (window.recent == 0 || unseen_end <= window.sinks || end <= begin) return {{0, length}};
  EntryRuns kept;
  if (begin > 0) kept.push_back({0, begin});
  if (end < length) kept.push_back({end, length});
  return kept;
}

}  // namespace

std::string Describe(const Window& window) {
  if (window.recent == 0) return "full";
  return absl::StrCat("window(sinks=", window.sinks, ",recent=", window.recent, ")");
}

std::optional<Window> ParseWindow(absl::string_view policy) {
  Window window;
  if (policy == "full") return window;
  absl::string_view rest = policy;
  if (!absl::ConsumePrefix(&rest, "window(sinks=") || !absl::ConsumeSuffix(&rest, ")")) {
    return std::nullopt;
  }
  const size_t comma = rest.find(",recent=");
  if (comma == absl::string_view::npos || !absl::SimpleAtoi(rest.substr(0, comma), &window.sinks) ||
      !absl::SimpleAtoi(rest.substr(comma + 8), &window.recent) || window.recent < 1 ||
      Describe(window) != policy) {
    return std::nullopt;
  }
  return window;
}

bool IsWithin(const Window& inner, const Window& outer) {
  if (outer.recent == 0) return true;
  return inner.recent != 0 && inner.sinks <= outer.sinks && inner.recent <= outer.recent;
}

absl::StatusOr<v1::Manifest> Shrink(const v1::Manifest& manifest, const Window& window) {
  if (manifest.num_entries() != 0 || !manifest.policy_state().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the memory's policy keeps entries by more than their place: ",
                     manifest.lineage().policy()));
  }
  const int64_t length = NumEntriesOf(manifest);
  ASSIGN_OR_RETURN(std::vector<EntryRuns> held, HeldOf(manifest));
  const EntryRuns kept = Kept(window, length);
  for (EntryRuns& of_head : held) {
    of_head = Intersect(of_head, kept);
    if (!Contains(of_head, 0, std::min(window.sinks, length))) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the model's own sliding window has dropped some of the first entries: sinks ",
          window.sinks));
    }
  }
  v1::Manifest shrunk = manifest;
  shrunk.mutable_lineage()->set_policy(Describe(window));
  for (size_t i = 0; i < held.size(); ++i) {
    ToWire(held[i], 0, shrunk.mutable_held(static_cast<int>(i)));
  }
  shrunk.clear_chunks();
  const int64_t num_kv_heads = manifest.shape().num_kv_heads();
  for (const v1::Chunk& chunk : manifest.chunks()) {
    RETURN_IF_ERROR(CheckChunk(chunk, manifest.shape()));
    bool is_held = false;
    for (int64_t i = 0; i < chunk.num_layers() * num_kv_heads && !is_held; ++i) {
      const size_t h = held.size() == 1 ? 0 : chunk.first_layer() * num_kv_heads + i;
      is_held = Touches(held[h], static_cast<int64_t>(chunk.first_serial()),
                        static_cast<int64_t>(chunk.first_serial() + chunk.num_serials()));
    }
    if (is_held) *shrunk.add_chunks() = chunk;
  }
  return shrunk;
}

absl::StatusOr<std::vector<EntryRuns>> HeldOf(const v1::Manifest& manifest) {
  RETURN_IF_ERROR(CheckShape(manifest.shape()));
  const v1::Shape& shape = manifest.shape();
  if (manifest.held_size() != 1 &&
      manifest.held_size() != shape.num_layers() * shape.num_kv_heads()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a manifest has not one set of held entries per layer and head: ", manifest.held_size()));
  }
  std::vector<EntryRuns> held;
  held.reserve(manifest.held_size());
  for (const v1::Runs& runs : manifest.held()) {
    ASSIGN_OR_RETURN(EntryRuns entries, FromWire(runs, 0, NumEntriesOf(manifest)));
    held.push_back(std::move(entries));
  }
  return held;
}

absl::StatusOr<int64_t> MeanHeld(const v1::Manifest& manifest) {
  ASSIGN_OR_RETURN(const std::vector<EntryRuns> held, HeldOf(manifest));
  int64_t sum = 0;
  for (const EntryRuns& of_head : held) sum += NumEntries(of_head);
  return sum / static_cast<int64_t>(held.size());
}

}  // namespace mneme::stored

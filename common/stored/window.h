// The policies that keep entries by their place alone, `full` and `window`: what they keep is known
// without a model, so that a stored memory can be brought from one to a tighter one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/stored/runs.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::stored {

namespace v1 = ::mneme::snapshot::v1;

struct Window {
  int64_t sinks = 0;   // first entries that stay
  int64_t recent = 0;  // latest entries that stay; 0: all do (`full`)
};

// The policy's canonical text, as lineages have it.
std::string Describe(const Window& window);
// Returns the window that such a text names; nothing: it names another kind of policy.
std::optional<Window> ParseWindow(absl::string_view policy);

// Says whether all that `inner` keeps is kept by `outer`, whatever the length.
bool IsWithin(const Window& inner, const Window& outer);

// Returns the memory as `window` keeps it: pages that no later query sees are held no longer, and
// chunks of which nothing is held are left out. This is what a sequence under that policy holds.
// The memory must be of a window that `window` is within. FAILED_PRECONDITION: first entries that
// the window needs are not there (a model's own sliding window has dropped them).
// INVALID_ARGUMENT: the manifest is not sound.
absl::StatusOr<v1::Manifest> Shrink(const v1::Manifest& manifest, const Window& window);

// Returns what a memory holds of each (layer, head), in this order; one element: the same of all.
// INVALID_ARGUMENT: the manifest is not sound.
absl::StatusOr<std::vector<EntryRuns>> HeldOf(const v1::Manifest& manifest);

// Returns how many entries a memory holds, the mean over layers and heads. INVALID_ARGUMENT: the
// manifest is not sound.
absl::StatusOr<int64_t> MeanHeld(const v1::Manifest& manifest);

}  // namespace mneme::stored

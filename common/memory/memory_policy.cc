#include "common/memory/memory_policy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/memory/kv_sequence.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/stored/window.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {
namespace {

constexpr int64_t kMaxWindowEntries = int64_t{1} << 24;
// First entries that stay when `full` is tightened (StreamingLLM's).
constexpr int64_t kElasticSinks = 4;
// A window is not tightened below this.
constexpr int64_t kMinElasticRecent = 128;

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

// The entries [begin, end) that no query from index `length` on sees under `mask`.
std::pair<int64_t, int64_t> Unseen(const AttentionMask& mask, int64_t length) {
  if (mask.window == 0) return {0, 0};
  const int64_t end = length - mask.window + 1;  // query `length` sees this one
  return end > mask.sinks ? std::pair(mask.sinks, end) : std::pair<int64_t, int64_t>(0, 0);
}

// Pages of one head that hold `length` entries of which Unseen ones are given back.
int64_t ResidentPages(const AttentionMask& mask, int64_t length) {
  const auto [begin, end] = Unseen(mask, length);
  const int64_t first = PagesOf(begin);
  const int64_t last = end / kernels::kPageEntries;
  return PagesOf(length) - std::max<int64_t>(last - first, 0);
}

// Everything that follows from a mask: what `full` and `window` do.
class MaskPolicy final : public MemoryPolicy {
 public:
  explicit MaskPolicy(const AttentionMask& mask) : mask_(mask) {}

  std::string name() const override { return mask_.window == 0 ? "full" : "window"; }

  std::string Describe() const override {
    return stored::Describe({.sinks = mask_.sinks, .recent = mask_.window});
  }

  AttentionMask mask() const override { return mask_; }

  ChunkLayout LayOut(const KvSequence&, int64_t waiting, int64_t room) const override {
    return {.num_tokens = std::min(waiting, room)};
  }

  AttentionStatistics statistics() const override { return AttentionStatistics::kNone; }

  Retention Retain(const KvSequence& sequence) const override {
    Retention retention;
    const KvShape& shape = sequence.shape();
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      const AttentionMask mask = MaskOfLayer(mask_, shape.sliding_window(layer));
      // Without eviction all heads have one length.
      const auto [begin, end] = Unseen(mask, sequence.length(layer, 0));
      if (begin < end) retention.forgotten.push_back({.layer = layer, .begin = begin, .end = end});
    }
    return retention;
  }

  bool CanFollow(const MemoryPolicy& earlier) const override {
    return earlier.TighterOf(Describe()) != nullptr;
  }

  std::shared_ptr<const MemoryPolicy> Tighter(const KvSequence& sequence) const override {
    const KvShape& shape = sequence.shape();
    // What a model's own window has dropped can't become a first entry that stays.
    if (shape.has_sliding_windows()) return nullptr;
    const int64_t length = sequence.length(0, 0);
    const int64_t held = mask_.window == 0 ? length : std::min(length, mask_.window);
    const int64_t recent = held / 2;
    if (recent < kMinElasticRecent) return nullptr;
    return std::make_shared<MaskPolicy>(
        AttentionMask{.window = recent, .sinks = mask_.window == 0 ? kElasticSinks : mask_.sinks});
  }

  std::shared_ptr<const MemoryPolicy> TighterOf(absl::string_view description) const override {
    const std::optional<stored::Window> tighter = stored::ParseWindow(description);
    if (!tighter.has_value() ||
        !stored::IsWithin(*tighter, {.sinks = mask_.sinks, .recent = mask_.window})) {
      return nullptr;
    }
    return std::make_shared<MaskPolicy>(
        AttentionMask{.window = tighter->recent, .sinks = tighter->sinks});
  }

  int64_t EstimatePeakPages(const KvShape& shape, int64_t num_tokens,
                            int64_t step_tokens) const override {
    const int64_t step = std::min(step_tokens, num_tokens);
    int64_t pages = 0;
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      const AttentionMask mask = MaskOfLayer(mask_, shape.sliding_window(layer));
      int64_t held = PagesOf(num_tokens);
      if (mask.window > 0) {
        // Sinks, window and step may each begin and end within a page.
        held = std::min(held, PagesOf(mask.sinks) + PagesOf(mask.window - 1 + step) + 1);
      }
      pages += held * shape.num_kv_heads;
    }
    return pages;
  }

  int64_t EstimateResidentPages(const KvShape& shape, int64_t num_tokens) const override {
    int64_t pages = 0;
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      pages += ResidentPages(MaskOfLayer(mask_, shape.sliding_window(layer)), num_tokens) *
               shape.num_kv_heads;
    }
    return pages;
  }

 private:
  const AttentionMask mask_;
};

}  // namespace

std::shared_ptr<const MemoryPolicy> FullPolicy() {
  return std::make_shared<MaskPolicy>(AttentionMask{});
}

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> WindowPolicy(int64_t sinks, int64_t recent) {
  if (sinks < 0 || sinks > kMaxWindowEntries) {
    return status::InvalidField(
        "memory_policy.window.sinks",
        absl::StrCat("sinks must be from 0 to ", kMaxWindowEntries, ": ", sinks));
  }
  if (recent < 1 || recent > kMaxWindowEntries) {
    return status::InvalidField(
        "memory_policy.window.recent",
        absl::StrCat("recent must be from 1 to ", kMaxWindowEntries, ": ", recent));
  }
  return std::make_shared<MaskPolicy>(AttentionMask{.window = recent, .sinks = sinks});
}

absl::StatusOr<std::unique_ptr<PolicyState>> MemoryPolicy::RestoreState(
    const KvShape&, absl::string_view bytes) const {
  if (!bytes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a stored memory has a policy state that its policy has not: ", name()));
  }
  return nullptr;
}

}  // namespace mneme::memory

#include "common/memory/eviction_policy.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/attention_sums.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/namm_selection.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int64_t kMaxInterval = 65536;

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

absl::Status CheckBudget(const std::string& policy, const EvictionBudget& budget, int64_t minimum,
                         int64_t interval) {
  const std::string field = absl::StrCat("memory_policy.", policy);
  if (interval < 1 || interval > kMaxInterval) {
    return status::InvalidField(field + ".interval",
                                absl::StrCat("must be from 1 to ", kMaxInterval, ": ", interval));
  }
  if (budget.tokens != 0) {
    if (budget.tokens >= minimum && budget.tokens <= kMaxTokens) return absl::OkStatus();
    return status::InvalidField(
        field + ".budget",
        absl::StrCat("must be from ", minimum, " to ", kMaxTokens, " tokens: ", budget.tokens));
  }
  // Written so that NaN fails.
  if (budget.fraction > 0 && budget.fraction < 1) return absl::OkStatus();
  return status::InvalidField(field + ".budget.fraction",
                              absl::StrCat("must be above 0 and below 1: ", budget.fraction));
}

// A share above this is not made larger.
constexpr double kLargestFraction = 0.95;

int64_t Scaled(int64_t number, double scale) {
  return static_cast<int64_t>(std::ceil(static_cast<double>(number) * scale));
}

std::string Describe(const EvictionBudget& budget) {
  return budget.tokens != 0 ? absl::StrCat("tokens=", budget.tokens)
                            : absl::StrCat("fraction=", budget.fraction);
}

// When to drop, and how much; which entries is up to the method.
class EvictionPolicy : public MemoryPolicy {
 public:
  // `minimum`: entries that stay whatever the budget is.
  EvictionPolicy(const EvictionBudget& budget, int64_t minimum, int64_t interval)
      : budget_(budget), minimum_(minimum), interval_(interval) {}

  AttentionMask mask() const final { return {}; }
  bool moves_entries() const final { return true; }
  // Where everything is there, dropping begins with the next interval; what entries received before
  // counts for nothing.
  bool CanFollow(const MemoryPolicy& earlier) const final {
    return MemoryPolicy::CanFollow(earlier) || earlier.name() == "full";
  }
  std::shared_ptr<const MemoryPolicy> Looser() const final {
    if (budget_.tokens > kMaxTokens / 2 || budget_.fraction > kLargestFraction) return nullptr;
    const double fraction =
        budget_.fraction < 0.5 ? 2 * budget_.fraction : (1 + budget_.fraction) / 2;
    return Resized({.tokens = 2 * budget_.tokens, .fraction = budget_.tokens != 0 ? 0 : fraction},
                   interval_, /*scale=*/1);
  }
  std::shared_ptr<const MemoryPolicy> Shadow(int64_t num_tokens, int64_t of_tokens) const final {
    const double scale = static_cast<double>(num_tokens) / static_cast<double>(of_tokens);
    const int64_t size = std::max<int64_t>(Scaled(SizeAt(of_tokens), scale), 2);
    if (size >= num_tokens) return nullptr;
    return Resized({.tokens = size}, num_tokens, scale);
  }
  bool MovesEntriesAt(int64_t num_tokens) const final { return num_tokens % interval_ == 0; }

  ChunkLayout LayOut(const KvSequence& sequence, int64_t waiting, int64_t room) const final {
    return {.num_tokens = std::min({waiting, room, interval_ - sequence.num_tokens() % interval_})};
  }

  Retention Retain(const KvSequence& sequence) const final {
    Retention retention;
    if (!MovesEntriesAt(sequence.num_tokens())) return retention;
    const int64_t size = SizeAt(sequence.num_tokens());
    const KvShape& shape = sequence.shape();
    for (int64_t layer = FirstLayer(); layer < shape.num_layers; ++layer) {
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        if (sequence.length(layer, head) <= size) continue;
        retention.kept.push_back({layer, head, Select(sequence, layer, head, size)});
      }
    }
    return retention;
  }

  int64_t EstimatePeakPages(const KvShape& shape, int64_t num_tokens, int64_t) const final {
    // The last drop before the end left the most; the share grows with the tokens.
    const int64_t held = std::min(num_tokens, SizeAt(num_tokens) + interval_);
    return Pages(shape, num_tokens, held);
  }

  int64_t EstimateResidentPages(const KvShape& shape, int64_t num_tokens) const final {
    const int64_t last_drop = num_tokens / interval_ * interval_;
    const int64_t held = std::min(last_drop, SizeAt(last_drop)) + (num_tokens - last_drop);
    return Pages(shape, num_tokens, held);
  }

 protected:
  // Layers before this one keep everything.
  virtual int64_t FirstLayer() const { return 0; }
  // Returns the `size` entries that stay, ascending; the head has more.
  virtual std::vector<int64_t> Select(const KvSequence& sequence, int64_t layer, int64_t head,
                                      int64_t size) const = 0;
  // Returns the same policy with another budget and interval; `scale`: of how many of the entries
  // stay for being new.
  virtual std::shared_ptr<const MemoryPolicy> Resized(const EvictionBudget& budget,
                                                      int64_t interval, double scale) const = 0;

  std::string DescribeBudget() const {
    return absl::StrCat(memory::Describe(budget_), ",interval=", interval_);
  }

 private:
  int64_t SizeAt(int64_t num_tokens) const { return std::max(budget_.At(num_tokens), minimum_); }
  int64_t Pages(const KvShape& shape, int64_t all, int64_t held) const {
    const int64_t whole = std::min(FirstLayer(), shape.num_layers);
    return shape.num_kv_heads * (whole * PagesOf(all) + (shape.num_layers - whole) * PagesOf(held));
  }

  const EvictionBudget budget_;
  const int64_t minimum_;
  const int64_t interval_;
};

// The latest `recent` of `length` entries, and of the others the best by score, `size` in all.
std::vector<int64_t> BestAndRecent(absl::Span<const float> scores, int64_t length, int64_t recent,
                                   int64_t size) {
  const int64_t others = length - std::min(recent, size);
  std::vector<int64_t> kept = LargestIndices(scores.first(others), size - (length - others));
  for (int64_t i = others; i < length; ++i) kept.push_back(i);
  return kept;
}

// The sums of all `length` entries of a head.
std::vector<float> SumsOf(const KvSequence& sequence, int64_t layer, int64_t head) {
  const absl::Span<const float> known =
      static_cast<const AttentionSums&>(*sequence.state()).sums(layer, head);
  std::vector<float> sums(known.begin(), known.end());
  sums.resize(sequence.length(layer, head), 0.0f);
  return sums;
}

// Those that score entries by the attention that they receive from some queries.
class AttentionPolicy : public EvictionPolicy {
 public:
  AttentionPolicy(const EvictionBudget& budget, int64_t minimum, int64_t interval,
                  const SummedQueries& queries)
      : EvictionPolicy(budget, minimum, interval), queries_(queries) {}

  AttentionStatistics statistics() const final { return AttentionStatistics::kWeights; }
  std::unique_ptr<PolicyState> NewState(const KvShape& shape) const final {
    return std::make_unique<AttentionSums>(shape, queries_);
  }
  absl::StatusOr<std::unique_ptr<PolicyState>> RestoreState(const KvShape& shape,
                                                            absl::string_view bytes) const final {
    return AttentionSums::Restore(shape, queries_, bytes);
  }

 private:
  const SummedQueries queries_;
};

class H2o final : public AttentionPolicy {
 public:
  explicit H2o(const H2oOptions& options)
      : AttentionPolicy(options.budget, std::max<int64_t>(options.recent + 1, 2), options.interval,
                        SummedQueries()),
        options_(options) {}

  std::string name() const override { return "h2o"; }
  std::string Describe() const override {
    return absl::StrCat("h2o(", DescribeBudget(), ",recent=", options_.recent, ")");
  }

 protected:
  std::vector<int64_t> Select(const KvSequence& sequence, int64_t layer, int64_t head,
                              int64_t size) const override {
    const int64_t recent = options_.recent > 0 ? options_.recent : size / 2;
    return BestAndRecent(SumsOf(sequence, layer, head), sequence.length(layer, head), recent, size);
  }

  std::shared_ptr<const MemoryPolicy> Resized(const EvictionBudget& budget, int64_t interval,
                                              double scale) const override {
    return std::make_shared<H2o>(H2oOptions{
        .budget = budget, .recent = Scaled(options_.recent, scale), .interval = interval});
  }

 private:
  const H2oOptions options_;
};

class SnapKv final : public AttentionPolicy {
 public:
  explicit SnapKv(const SnapKvOptions& options)
      : AttentionPolicy(options.budget, options.window + 1, options.interval,
                        {.interval = options.interval, .window = options.window}),
        options_(options) {}

  std::string name() const override { return "snapkv"; }
  std::string Describe() const override {
    return absl::StrCat("snapkv(", DescribeBudget(), ",window=", options_.window,
                        ",kernel_size=", options_.kernel_size, ")");
  }

 protected:
  std::vector<int64_t> Select(const KvSequence& sequence, int64_t layer, int64_t head,
                              int64_t size) const override {
    const int64_t length = sequence.length(layer, head);
    const std::vector<float> sums = SumsOf(sequence, layer, head);
    // Only entries before the window are judged, and beyond the ends there is nothing.
    const int64_t judged = length - options_.window;
    const int64_t reach = options_.kernel_size / 2;
    std::vector<float> scores(length, 0.0f);
    for (int64_t i = 0; i < judged; ++i) {
      const int64_t end = std::min(judged, i + reach + 1);
      for (int64_t j = std::max<int64_t>(i - reach, 0); j < end; ++j) scores[i] += sums[j];
    }
    return BestAndRecent(scores, length, options_.window, size);
  }

  std::shared_ptr<const MemoryPolicy> Resized(const EvictionBudget& budget, int64_t interval,
                                              double scale) const override {
    SnapKvOptions options = options_;
    options.budget = budget;
    options.interval = interval;
    options.window = std::min(Scaled(options_.window, scale), interval);
    return std::make_shared<SnapKv>(options);
  }

 private:
  const SnapKvOptions options_;
};

class L2Norm final : public EvictionPolicy {
 public:
  explicit L2Norm(const L2NormOptions& options)
      : EvictionPolicy(options.budget, 1, options.interval), options_(options) {}

  std::string name() const override { return "l2norm"; }
  std::string Describe() const override {
    return absl::StrCat("l2norm(", DescribeBudget(), ",skip_layers=", options_.skip_layers, ")");
  }
  AttentionStatistics statistics() const override { return AttentionStatistics::kNone; }

 protected:
  int64_t FirstLayer() const override { return options_.skip_layers; }

  std::vector<int64_t> Select(const KvSequence& sequence, int64_t layer, int64_t head,
                              int64_t size) const override {
    std::vector<int64_t> all(sequence.length(layer, head));
    std::iota(all.begin(), all.end(), 0);
    // Can't fail: nothing is ever forgotten in place.
    const at::Tensor keys = sequence.Read(layer, head, all).value().first.to(at::kCPU, at::kFloat);
    const at::Tensor dense = keys.contiguous();
    const float* key = dense.const_data_ptr<float>();
    std::vector<float> scores;
    for (size_t i = 0; i < all.size(); ++i, key += dense.size(1)) {
      float square = 0;
      for (int64_t d = 0; d < dense.size(1); ++d) square += key[d] * key[d];
      scores.push_back(-square);
    }
    return LargestIndices(scores, size);
  }

  std::shared_ptr<const MemoryPolicy> Resized(const EvictionBudget& budget, int64_t interval,
                                              double) const override {
    L2NormOptions options = options_;
    options.budget = budget;
    options.interval = interval;
    return std::make_shared<L2Norm>(options);
  }

 private:
  const L2NormOptions options_;
};

}  // namespace

int64_t EvictionBudget::At(int64_t num_tokens) const {
  if (tokens != 0) return tokens;
  return static_cast<int64_t>(std::ceil(fraction * static_cast<double>(num_tokens)));
}

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> H2oPolicy(const H2oOptions& options) {
  if (options.recent < 0 || options.recent > kMaxTokens) {
    return status::InvalidField(
        "memory_policy.h2o.recent",
        absl::StrCat("must be from 0 to ", kMaxTokens, ": ", options.recent));
  }
  RETURN_IF_ERROR(CheckBudget("h2o", options.budget, std::max<int64_t>(options.recent + 1, 2),
                              options.interval));
  return std::make_shared<H2o>(options);
}

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> SnapKvPolicy(const SnapKvOptions& options) {
  if (options.window < 1 || options.window > options.interval) {
    return status::InvalidField(
        "memory_policy.snapkv.window",
        absl::StrCat("must be from 1 to the interval, ", options.interval, ": ", options.window));
  }
  if (options.kernel_size < 1 || options.kernel_size % 2 == 0 || options.kernel_size > 1023) {
    return status::InvalidField(
        "memory_policy.snapkv.kernel_size",
        absl::StrCat("must be odd and from 1 to 1023: ", options.kernel_size));
  }
  RETURN_IF_ERROR(CheckBudget("snapkv", options.budget, options.window + 1, options.interval));
  return std::make_shared<SnapKv>(options);
}

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> L2NormPolicy(const L2NormOptions& options) {
  if (options.skip_layers < 0) {
    return status::InvalidField("memory_policy.l2norm.skip_layers",
                                absl::StrCat("must not be below 0: ", options.skip_layers));
  }
  RETURN_IF_ERROR(CheckBudget("l2norm", options.budget, 2, options.interval));
  return std::make_shared<L2Norm>(options);
}

}  // namespace mneme::memory

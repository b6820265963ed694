#include "common/memory/namm_policy.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/memory/kv_sequence.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {
namespace {

int64_t PagesOf(int64_t entries) {
  return (entries + kernels::kPageEntries - 1) / kernels::kPageEntries;
}

class Namm final : public MemoryPolicy {
 public:
  explicit Namm(std::shared_ptr<const NammModel> model) : model_(std::move(model)) {}

  std::string name() const override { return "namm"; }
  std::string Describe() const override {
    return absl::StrCat("namm(model=", model_->digest(), ")");
  }
  AttentionMask mask() const override { return {}; }
  bool moves_entries() const override { return true; }
  bool MovesEntriesAt(int64_t num_tokens) const override { return num_tokens % delay() == 0; }
  AttentionStatistics statistics() const override { return AttentionStatistics::kWeights; }

  ChunkLayout LayOut(const KvSequence& sequence, int64_t waiting, int64_t room) const override {
    return {.num_tokens = std::min({waiting, room, delay() - sequence.num_tokens() % delay()})};
  }

  std::unique_ptr<PolicyState> NewState(const KvShape& shape) const override {
    return std::make_unique<NammState>(model_, shape);
  }
  absl::StatusOr<std::unique_ptr<PolicyState>> RestoreState(
      const KvShape& shape, absl::string_view bytes) const override {
    return NammState::Restore(model_, shape, bytes);
  }

  Retention Retain(const KvSequence& sequence) const override {
    Retention retention;
    if (!MovesEntriesAt(sequence.num_tokens())) return retention;
    auto& state = static_cast<NammState&>(*sequence.state());
    const KvShape& shape = sequence.shape();
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      const int64_t length = sequence.length(layer, 0);
      at::Tensor positions = at::empty({shape.num_kv_heads, length}, at::kLong);
      int64_t* position = positions.data_ptr<int64_t>();
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        for (int64_t i = 0; i < length; ++i) *position++ = sequence.position(layer, head, i);
      }
      NammLayer::Evaluation evaluation =
          state.layer(layer).Evaluate(*model_, positions, &state.running());
      std::vector<std::vector<int64_t>>& kept = evaluation.selection.kept;
      if (static_cast<int64_t>(kept[0].size()) == length) continue;
      for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
        retention.kept.push_back({layer, head, std::move(kept[head])});
      }
    }
    return retention;
  }

  int64_t EstimatePeakPages(const KvShape& shape, int64_t num_tokens, int64_t) const override {
    int64_t held = num_tokens;
    if (cap().has_value()) held = std::min(held, *cap() + delay());
    return shape.num_heads() * PagesOf(held);
  }
  int64_t EstimateResidentPages(const KvShape& shape, int64_t num_tokens) const override {
    int64_t held = num_tokens;
    if (cap().has_value()) held = std::min(held, *cap() + num_tokens % delay());
    return shape.num_heads() * PagesOf(held);
  }

 private:
  int64_t delay() const { return model_->config().delay; }
  const std::optional<int64_t>& cap() const { return model_->config().selection.cache_size; }

  const std::shared_ptr<const NammModel> model_;
};

void AppendStatistics(const FrequencyStatistics& statistics, std::string* bytes) {
  const uint64_t count = statistics.mean.size();
  bytes->append(reinterpret_cast<const char*>(&count), sizeof(count));
  bytes->append(reinterpret_cast<const char*>(statistics.mean.data()), 8 * count);
  bytes->append(reinterpret_cast<const char*>(statistics.variance.data()), 8 * count);
  bytes->append(reinterpret_cast<const char*>(statistics.count.data()), 8 * count);
}

absl::StatusOr<FrequencyStatistics> TakeStatistics(int64_t num_frequencies,
                                                   absl::string_view* bytes) {
  uint64_t count = 0;
  if (bytes->size() < sizeof(count)) return absl::InvalidArgumentError("NAMM state is cut short");
  std::memcpy(&count, bytes->data(), sizeof(count));
  bytes->remove_prefix(sizeof(count));
  if (count != 0 && count != static_cast<uint64_t>(num_frequencies)) {
    return absl::InvalidArgumentError(
        absl::StrCat("NAMM state has statistics of ", count, " frequencies"));
  }
  if (bytes->size() < 24 * count) return absl::InvalidArgumentError("NAMM state is cut short");
  FrequencyStatistics statistics;
  const auto take = [&](auto* values) {
    values->resize(count);
    if (count > 0) std::memcpy(values->data(), bytes->data(), 8 * count);
    bytes->remove_prefix(8 * count);
  };
  take(&statistics.mean);
  take(&statistics.variance);
  take(&statistics.count);
  return statistics;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MemoryPolicy>> NammPolicy(
    std::shared_ptr<const NammModel> model, const NammOverrides& overrides) {
  NammConfig config = model->config();
  if (overrides.cache_size.has_value()) config.selection.cache_size = overrides.cache_size;
  if (overrides.delay.has_value()) config.delay = *overrides.delay;
  if (overrides.threshold.has_value()) config.selection.threshold = *overrides.threshold;
  absl::StatusOr<NammModel> changed =
      NammModel::Create(config, model->network().parameters(), model->statistics());
  if (!changed.ok()) {
    const std::string field = status::PayloadOf(changed.status(), status::kFieldPayload);
    return status::WithPayload(changed.status(), status::kFieldPayload,
                               absl::StrCat("memory_policy.namm.", field));
  }
  return std::make_shared<Namm>(std::make_shared<const NammModel>(*std::move(changed)));
}

NammState::NammState(std::shared_ptr<const NammModel> model, const KvShape& shape)
    : model_(std::move(model)) {
  layers_.reserve(shape.num_layers);
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    layers_.emplace_back(&model_->spectrogram(), shape.num_kv_heads);
  }
}

std::unique_ptr<PolicyState> NammState::Clone() const { return std::make_unique<NammState>(*this); }

void NammState::Observe(int64_t layer, int64_t, const at::Tensor& weights) {
  layers_[layer].Observe(weights);
}

void NammState::Keep(absl::Span<const KeptEntries> kept) {
  std::vector<std::vector<std::vector<int64_t>>> of_layer(layers_.size());
  for (const KeptEntries& entries : kept) {
    of_layer[entries.layer].push_back(entries.indices);  // heads in order, as Retain names them
  }
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (!of_layer[layer].empty()) layers_[layer].Keep(of_layer[layer]);
  }
}

absl::Status NammState::Check(const KvSequence& sequence) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (int64_t head = 0; head < sequence.shape().num_kv_heads; ++head) {
      const int64_t length = sequence.length(static_cast<int64_t>(layer), head);
      if (length != layers_[layer].num_tokens()) {
        return absl::InvalidArgumentError(absl::StrCat("NAMM state of ",
                                                       layers_[layer].num_tokens(), " entries for ",
                                                       length, ", layer ", layer, ", head ", head));
      }
    }
  }
  return absl::OkStatus();
}

int64_t NammState::num_bytes() const {
  int64_t bytes = 0;
  for (const NammLayer& layer : layers_) bytes += layer.num_bytes();
  return bytes;
}

std::string NammState::Serialise() const {
  std::string bytes;
  AppendStatistics(running_.stored, &bytes);
  AppendStatistics(running_.fresh, &bytes);
  for (const NammLayer& layer : layers_) layer.Serialise(&bytes);
  return bytes;
}

absl::StatusOr<std::unique_ptr<NammState>> NammState::Restore(
    std::shared_ptr<const NammModel> model, const KvShape& shape, absl::string_view bytes) {
  const int64_t frequencies = model->spectrogram().num_frequencies();
  auto state = std::make_unique<NammState>(std::move(model), shape);
  ASSIGN_OR_RETURN(state->running_.stored, TakeStatistics(frequencies, &bytes));
  ASSIGN_OR_RETURN(state->running_.fresh, TakeStatistics(frequencies, &bytes));
  for (NammLayer& layer : state->layers_) RETURN_IF_ERROR(layer.Restore(&bytes));
  if (!bytes.empty()) return absl::InvalidArgumentError("NAMM state is of another shape");
  return state;
}

}  // namespace mneme::memory

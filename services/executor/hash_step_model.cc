#include "services/executor/hash_step_model.h"

#include <ATen/Functions.h>

#include <limits>

#include "common/status/status_macros.h"
#include "kernels/paged_attention.h"

namespace mneme::executor {
namespace {

constexpr int64_t kHeadSize = 8;
using kernels::kPageEntries;

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15;
  return hash ^ hash >> 29;
}

// Where entry `entry` of a head has the first element of its value.
float* ValueAt(const memory::KvSequence& sequence, int64_t layer, int64_t head, int64_t entry) {
  const at::Tensor& table = sequence.tables()->page_table();
  const int32_t page =
      table.const_data_ptr<int32_t>()[sequence.slot() * table.stride(0) + layer * table.stride(1) +
                                      head * table.stride(2) + entry / kPageEntries];
  if (page < 0) return nullptr;
  return sequence.pool().tensor().data_ptr<float>() + page * kernels::PageElements(kHeadSize) +
         kPageEntries * kHeadSize + entry % kPageEntries * kHeadSize;
}

// What a token leaves in a head; different everywhere, exact in float32.
float EntryOf(int32_t token, int64_t layer, int64_t head) {
  return static_cast<float>(token + 1000 * layer + 10000 * head);
}

}  // namespace

HashStepModel::HashStepModel(const HashModelOptions& options) {
  limits_.vocab_size = options.vocab_size;
  limits_.context_length = options.context_length;
  limits_.eos_token_ids = options.eos_token_ids;
  shape_.num_layers = options.num_layers;
  shape_.num_kv_heads = options.num_kv_heads;
  shape_.head_size = kHeadSize;
}

memory::KvPoolOptions HashStepModel::PoolOptions(int64_t budget_bytes) const {
  return {.head_size = kHeadSize, .budget_bytes = budget_bytes};
}

int64_t HashStepModel::BudgetOf(int64_t num_pages) const {
  return num_pages * kernels::PageElements(kHeadSize) * static_cast<int64_t>(sizeof(float));
}

void HashStepModel::WriteEntries(const model::SequenceStep& step) const {
  const int64_t begin = step.sequence->num_tokens();
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (size_t i = 0; i < step.tokens.size(); ++i) {
        *ValueAt(*step.sequence, layer, head, begin + static_cast<int64_t>(i)) =
            EntryOf(step.tokens[i], layer, head);
      }
    }
  }
}

uint64_t HashStepModel::HashPast(const memory::KvSequence& sequence, int64_t query) const {
  const memory::AttentionMask mask = sequence.policy().mask();
  uint64_t hash = 1;
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int64_t entry = 0; entry <= query; ++entry) {
        if (mask.window != 0 && entry >= mask.sinks && entry <= query - mask.window) continue;
        const float* const value = ValueAt(sequence, layer, head, entry);
        // A page that is missing shows in the text, too.
        hash = Mix(hash, value == nullptr ? 77777 : static_cast<uint64_t>(*value));
      }
    }
  }
  return hash;
}

absl::StatusOr<at::Tensor> HashStepModel::Forward(absl::Span<const model::SequenceStep> steps) {
  if (before_step) RETURN_IF_ERROR(before_step());
  int64_t num_rows = 0;
  StepRecord record;
  for (const model::SequenceStep& step : steps) {
    const int64_t num_tokens = static_cast<int64_t>(step.tokens.size());
    if (!step.sequence->attached() || step.sequence->reserved_tokens() < num_tokens) {
      return absl::FailedPreconditionError("a sequence has no slot or no room");
    }
    record.push_back(num_tokens);
    num_rows += step.num_logits;
  }
  steps_.push_back(std::move(record));
  at::Tensor logits = at::empty({num_rows, limits_.vocab_size}, at::kFloat);
  float* row = logits.data_ptr<float>();
  for (const model::SequenceStep& step : steps) {
    WriteEntries(step);
    const int64_t end = step.sequence->num_tokens() + static_cast<int64_t>(step.tokens.size());
    for (int64_t query = end - step.num_logits; query < end; ++query) {
      const uint64_t hash = HashPast(*step.sequence, query);
      for (int64_t id = 0; id < limits_.vocab_size; ++id) {
        row[id] = static_cast<float>(Mix(hash, id) >> 40) * 0x1p-21F - 4;
        if (gives_nan) row[id] = std::numeric_limits<float>::quiet_NaN();
      }
      row += limits_.vocab_size;
    }
  }
  for (const model::SequenceStep& step : steps) {
    step.sequence->Advance(static_cast<int64_t>(step.tokens.size()));
  }
  return logits;
}

}  // namespace mneme::executor

// Policies at work in a sequence with pages: the derived baselines, fed with stored attention, and
// whole runs of a small Llama.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/memory/attention_sums.h"
#include "common/memory/eviction_policy.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_tables.h"
#include "common/memory/namm_policy.h"
#include "common/model/model.h"
#include "common/weights/model_files.h"
#include "common/weights/safetensors.h"
#include "kernels/paged_attention.h"
#include "tests/golden/namm/namm_cases.h"
#include "tests/support/temp_folder.h"

namespace mneme::testing {
namespace {

using memory::KvSequence;

std::vector<int64_t> AllOf(int64_t size) {
  std::vector<int64_t> indices(size);
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

// Keys, values [Hkv, K, D] and positions [Hkv, K] of a layer whose heads have one length.
struct Entries {
  at::Tensor keys;
  at::Tensor values;
  at::Tensor positions;
};

Entries EntriesOf(const KvSequence& sequence, int64_t layer) {
  std::vector<at::Tensor> keys, values, positions;
  for (int64_t head = 0; head < sequence.shape().num_kv_heads; ++head) {
    const int64_t length = sequence.length(layer, head);
    auto entries = sequence.Read(layer, head, AllOf(length));
    EXPECT_TRUE(entries.ok()) << entries.status();
    keys.push_back(entries->first);
    values.push_back(entries->second);
    std::vector<int64_t> of_head;
    for (int64_t i = 0; i < length; ++i) of_head.push_back(sequence.position(layer, head, i));
    positions.push_back(at::tensor(of_head, at::kLong));
  }
  return {at::stack(keys), at::stack(values), at::stack(positions)};
}

// A sequence of one layer whose entries the test writes.
class WrittenSequence {
 public:
  WrittenSequence(int64_t kv_heads, int64_t head_dim,
                  std::shared_ptr<const memory::MemoryPolicy> policy)
      : head_dim_(head_dim),
        shape_{.num_layers = 1, .num_kv_heads = kv_heads, .head_size = (head_dim + 7) / 8 * 8},
        pool_(*memory::KvPool::Create({.head_size = shape_.head_size, .budget_bytes = 1 << 22})),
        tables_(*memory::KvTables::Create(shape_, at::kCPU)),
        sequence_(pool_.get(), shape_, std::move(policy)) {
    EXPECT_TRUE(sequence_.Attach(*tables_).ok());
  }

  // key, value [H, Q, D].
  void Append(const at::Tensor& key, const at::Tensor& value) {
    const int64_t count = key.size(1);
    EXPECT_TRUE(sequence_.Reserve(count).ok());
    const auto padded = [&](const at::Tensor& x) {
      return at::constant_pad_nd(x.transpose(0, 1), {0, shape_.head_size - head_dim_}).contiguous();
    };
    const kernels::AttentionBatch batch{.seq_slot = at::full({1}, sequence_.slot(), at::kInt),
                                        .query_start = at::tensor({int64_t{0}, count}, at::kInt),
                                        .page_table = tables_->page_table().select(1, 0),
                                        .lengths = tables_->lengths().select(1, 0)};
    kernels::KvWrite(padded(key), padded(value), batch, pool_->tensor());
    sequence_.Advance(count);
  }

  KvSequence& sequence() { return sequence_; }
  at::Tensor Keys() const { return EntriesOf(sequence_, 0).keys.narrow(2, 0, head_dim_); }

 private:
  const int64_t head_dim_;
  const memory::KvShape shape_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
  KvSequence sequence_;
};

at::Tensor SumsOf(KvSequence& sequence) {
  std::vector<at::Tensor> rows;
  for (int64_t head = 0; head < sequence.shape().num_kv_heads; ++head) {
    const auto sums = static_cast<memory::AttentionSums*>(sequence.state())->sums(0, head);
    rows.push_back(at::tensor(at::ArrayRef<float>(sums.data(), sums.size()))
                       .narrow(0, 0, sequence.length(0, head)));
  }
  return at::stack(rows);
}

// Which of the entries before stayed: their indices, from the positions before and after.
at::Tensor IndicesOf(const at::Tensor& before, const at::Tensor& after) {
  return (after.unsqueeze(2) == before.unsqueeze(1)).to(at::kLong).argmax(2);
}

}  // namespace

void CheckBaselines(const GoldenFile& golden) {
  const int64_t heads = golden.Integer("kv_heads");
  const int64_t head_dim = golden.Integer("head_dim");
  const std::vector<int64_t> new_tokens = golden.config()["new_tokens"].get<std::vector<int64_t>>();
  int64_t interval = 0;
  for (const int64_t count : new_tokens) interval = std::gcd(interval, count);
  const auto h2o = memory::H2oPolicy({.budget = {.tokens = golden.Integer("budget")},
                                      .recent = golden.Integer("recent"),
                                      .interval = interval});
  ASSERT_TRUE(h2o.ok()) << h2o.status();
  ASSERT_EQ(golden.Integer("budget"), golden.Integer("recent") + golden.Integer("heavy"));
  WrittenSequence written(heads, head_dim, *h2o);
  KvSequence& sequence = written.sequence();
  for (size_t u = 0; u < new_tokens.size(); ++u) {
    const std::string prefix = absl::StrCat("h2o.u", u, ".");
    const int64_t position = sequence.num_tokens();
    written.Append(golden[prefix + "new_key"][0], golden[prefix + "new_value"][0]);
    sequence.state()->Observe(0, position, golden[prefix + "attn"][0].contiguous());
    golden.ExpectNear(prefix + "acc_before", SumsOf(sequence));
    const at::Tensor before = EntriesOf(sequence, 0).positions;
    ASSERT_TRUE(sequence.Forget().ok());
    const at::Tensor after = EntriesOf(sequence, 0).positions;
    golden.ExpectEqual(prefix + "retained_idx", IndicesOf(before, after));
    golden.ExpectEqual(prefix + "pos_after", after);
    golden.ExpectNear(prefix + "acc_after", SumsOf(sequence));
    golden.ExpectNear(prefix + "key_after", written.Keys());
  }

  const at::Tensor keys = golden["l2.key_cache"][0];
  golden.ExpectNear("l2.norm", at::sqrt((keys * keys).sum(2)));
  const auto l2norm = memory::L2NormPolicy(
      {.budget = {.tokens = golden.Integer("budget")}, .skip_layers = 0, .interval = keys.size(1)});
  ASSERT_TRUE(l2norm.ok()) << l2norm.status();
  WrittenSequence by_norm(heads, head_dim, *l2norm);
  by_norm.Append(keys, keys);
  ASSERT_TRUE(by_norm.sequence().Forget().ok());
  golden.ExpectEqual("l2.retained_idx", EntriesOf(by_norm.sequence(), 0).positions);
  golden.ExpectNear("l2.key_after", by_norm.Keys());
}

namespace {

// The Llama of a golden file, loaded as any Hugging Face folder.
class GoldenLlama {
 public:
  explicit GoldenLlama(const GoldenFile& golden) {
    const nlohmann::json& config = golden.config();
    double theta = golden.Number("rope_theta");
    const int64_t head_dim = golden.Integer("hidden") / golden.Integer("heads");
    if (!config["rope_scaling"].is_null()) {
      // "ntk", the same for all lengths: another base (specification, 6.9).
      const double factor = config["rope_scaling"]["factor"];
      const double alpha = config["rope_scaling"]["alpha"];
      theta *= std::pow(alpha * factor - (alpha - 1),
                        static_cast<double>(head_dim) / static_cast<double>(head_dim - 2));
      std::vector<double> frequencies;
      for (int64_t i = 0; i < head_dim; i += 2) {
        frequencies.push_back(
            std::pow(theta, -static_cast<double>(i) / static_cast<double>(head_dim)));
      }
      golden.ExpectNear("rope_inv_freq", at::tensor(frequencies, at::kDouble), 1e-6);
    }
    const nlohmann::json model_config = {{"model_type", "llama"},
                                         {"vocab_size", config["vocab"]},
                                         {"hidden_size", config["hidden"]},
                                         {"intermediate_size", config["intermediate"]},
                                         {"num_hidden_layers", config["layers"]},
                                         {"num_attention_heads", config["heads"]},
                                         {"num_key_value_heads", config["kv_heads"]},
                                         {"head_dim", head_dim},
                                         {"max_position_embeddings", config["total_len"]},
                                         {"rms_norm_eps", config["rms_eps"]},
                                         {"rope_theta", theta},
                                         {"hidden_act", "silu"},
                                         {"bos_token_id", 1},
                                         {"eos_token_id", 2},
                                         {"tie_word_embeddings", false}};
    std::ofstream(folder_.path() + "/config.json") << model_config.dump();
    std::vector<at::Tensor> tensors;
    std::vector<weights::TensorView> views;
    for (const std::string& name : golden.Names("w.")) {
      tensors.push_back(golden[name].contiguous());
      views.push_back({.name = name.substr(2),
                       .type = weights::TensorType::kF32,
                       .shape = tensors.back().sizes().vec(),
                       .data = static_cast<const uint8_t*>(tensors.back().const_data_ptr()),
                       .size_bytes = static_cast<uint64_t>(tensors.back().nbytes())});
    }
    const absl::Status status =
        weights::WriteSafetensors(folder_.path() + "/model.safetensors", views, {{"format", "pt"}});
    EXPECT_TRUE(status.ok()) << status;
    auto files = weights::ModelFiles::Open(folder_.path());
    EXPECT_TRUE(files.ok()) << files.status();
    auto model = model::Model::Load(std::shared_ptr(*std::move(files)), {});
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    pool_ = *memory::KvPool::Create(model_->PoolOptions(int64_t{1} << 24));
    tables_ = *memory::KvTables::Create(model_->kv_shape(), model_->device());
  }

  KvSequence NewSequence(std::shared_ptr<const memory::MemoryPolicy> policy) {
    KvSequence sequence(pool_.get(), model_->kv_shape(), std::move(policy));
    EXPECT_TRUE(sequence.Attach(*tables_).ok());
    return sequence;
  }

  // Logits [T, V] of all `ids`, before the policy forgets.
  at::Tensor Step(KvSequence& sequence, absl::Span<const int32_t> ids) {
    EXPECT_TRUE(sequence.Reserve(static_cast<int64_t>(ids.size())).ok());
    auto logits = model_->Forward(
        {{.sequence = &sequence, .tokens = ids, .num_logits = static_cast<int64_t>(ids.size())}});
    EXPECT_TRUE(logits.ok()) << logits.status();
    return logits->clone();
  }

 private:
  TempFolder folder_;
  std::unique_ptr<model::Model> model_;
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<memory::KvTables> tables_;
};

// Compares what update `u` sees with the reference; the sequence has not forgotten yet.
void ExpectUpdate(const GoldenFile& golden, int64_t u, const memory::NammModel& model,
                  const KvSequence& sequence) {
  auto& state = static_cast<memory::NammState&>(*sequence.state());
  memory::RunningStatistics running = state.running();
  for (int64_t layer = 0; layer < sequence.shape().num_layers; ++layer) {
    const std::string prefix = absl::StrCat("u", u, ".l", layer, ".");
    SCOPED_TRACE(prefix);
    const at::Tensor positions = EntriesOf(sequence, layer).positions;
    golden.ExpectEqual(prefix + "pos", positions);
    const auto evaluation = state.layer(layer).Evaluate(model, positions, &running);
    golden.ExpectNear(prefix + "ema", evaluation.ema, kEndToEndTolerance);
    golden.ExpectNear(prefix + "feat", evaluation.features, kEndToEndTolerance);
    golden.ExpectNear(prefix + "scores", evaluation.scores, kEndToEndTolerance);
    EXPECT_TRUE(at::equal(golden[prefix + "mask"][0].sum(-1),
                          at::tensor(evaluation.selection.above_threshold, at::kLong)));
    std::vector<at::Tensor> kept;
    for (const auto& of_head : evaluation.selection.kept) kept.push_back(at::tensor(of_head));
    golden.ExpectEqual(prefix + "retained", at::stack(kept));
  }
}

void ExpectEntries(const GoldenFile& golden, int64_t u, const KvSequence& sequence) {
  for (int64_t layer = 0; layer < sequence.shape().num_layers; ++layer) {
    const std::string prefix = absl::StrCat("u", u, ".l", layer, ".");
    const Entries entries = EntriesOf(sequence, layer);
    golden.ExpectEqual(prefix + "pos_after", entries.positions);
    golden.ExpectNear(prefix + "key_after", entries.keys, kEndToEndTolerance);
    golden.ExpectNear(prefix + "value_after", entries.values, kEndToEndTolerance);
  }
}

std::vector<int32_t> Ids(const at::Tensor& ids) {
  const at::Tensor plain = ids.flatten().to(at::kInt).contiguous();
  return {plain.const_data_ptr<int32_t>(), plain.const_data_ptr<int32_t>() + plain.numel()};
}

}  // namespace

void CheckEndToEnd(const GoldenFile& golden) {
  auto config = memory::ParseNammConfig(golden.config().dump());
  ASSERT_TRUE(config.ok()) << config.status();
  config->network.rope_theta = memory::BamOptions().rope_theta;
  memory::FrequencyStatistics statistics;
  if (golden.Has("norm_mean")) {
    const std::vector<float> mean = golden.Floats("norm_mean");
    const std::vector<float> variance = golden.Floats("norm_var");
    statistics.mean.assign(mean.begin(), mean.end());
    statistics.variance.assign(variance.begin(), variance.end());
    statistics.count.assign(mean.size(), 1);
  }
  auto created = memory::NammModel::Create(*config, golden.Floats("namm_params"), statistics);
  ASSERT_TRUE(created.ok()) << created.status();
  const auto namm = std::make_shared<const memory::NammModel>(*std::move(created));
  const auto policy = memory::NammPolicy(namm);
  ASSERT_TRUE(policy.ok()) << policy.status();

  GoldenLlama llama(golden);
  const std::vector<int32_t> ids = Ids(golden["input_ids"]);
  const std::vector<int32_t> chunk_lens = Ids(golden["chunk_lens"]);
  KvSequence full = llama.NewSequence(memory::FullPolicy());
  golden.ExpectNear("logits_full_cache", llama.Step(full, ids), kEndToEndTolerance);

  KvSequence sequence = llama.NewSequence(*policy);
  std::vector<at::Tensor> logits, lengths;
  int64_t updates = 0;
  for (size_t pass = 0; pass < chunk_lens.size(); ++pass) {
    const int64_t begin = sequence.num_tokens();
    // The policy ends steps where the reference updates.
    EXPECT_EQ((*policy)->LayOut(sequence, chunk_lens[pass], 1 << 20).num_tokens, chunk_lens[pass]);
    logits.push_back(
        llama.Step(sequence, absl::MakeConstSpan(ids).subspan(begin, chunk_lens[pass])));
    const bool is_update = sequence.num_tokens() % config->delay == 0;
    if (is_update) ExpectUpdate(golden, updates, *namm, sequence);
    ASSERT_TRUE(sequence.Forget().ok());
    if (is_update) ExpectEntries(golden, updates++, sequence);
    if (pass + 1 >= static_cast<size_t>(golden.Integer("prefill_calls"))) {
      std::vector<int64_t> of_layers;
      for (int64_t layer = 0; layer < sequence.shape().num_layers; ++layer) {
        of_layers.push_back(sequence.length(layer, 0));
      }
      lengths.push_back(at::tensor(of_layers, at::kLong));
    }
  }
  EXPECT_EQ(updates, golden.Integer("num_updates"));
  golden.ExpectNear("logits", at::cat(logits), kEndToEndTolerance);
  golden.ExpectEqual("cache_len_trace", at::stack(lengths));
  for (int64_t layer = 0; layer < sequence.shape().num_layers; ++layer) {
    const std::string prefix = absl::StrCat("final.l", layer, ".");
    golden.ExpectNear(prefix + "key", EntriesOf(sequence, layer).keys, kEndToEndTolerance);
    golden.ExpectNear(prefix + "value", EntriesOf(sequence, layer).values, kEndToEndTolerance);
  }
  if (golden.config()["online_norm"]) {
    const auto& fresh = static_cast<memory::NammState&>(*sequence.state()).running().fresh;
    golden.ExpectNear("final_online_mean", at::tensor(fresh.mean, at::kDouble));
    golden.ExpectNear("final_online_var", at::tensor(fresh.variance, at::kDouble));
    golden.ExpectEqual("final_online_num", at::tensor(fresh.count, at::kLong));
  }

  const int64_t greedy = golden.Integer("greedy");
  if (greedy == 0) return;
  // The prompt in other chunks than the reference's, then its own tokens.
  KvSequence generated = llama.NewSequence(*policy);
  std::vector<int32_t> tokens(ids.begin(), ids.begin() + golden.Integer("prompt_len"));
  const size_t prompt = tokens.size();
  while (tokens.size() < prompt + static_cast<size_t>(greedy)) {
    const int64_t begin = generated.num_tokens();
    const int64_t waiting = static_cast<int64_t>(tokens.size()) - begin;
    const int64_t size = (*policy)->LayOut(generated, waiting, 1 << 20).num_tokens;
    const at::Tensor step = llama.Step(generated, absl::MakeConstSpan(tokens).subspan(begin, size));
    ASSERT_TRUE(generated.Forget().ok());
    if (size == waiting) tokens.push_back(step[size - 1].argmax().item<int32_t>());
  }
  golden.ExpectEqual("greedy_tokens",
                     at::tensor(std::vector<int64_t>(tokens.begin() + static_cast<int64_t>(prompt),
                                                     tokens.end())));
}

}  // namespace mneme::testing

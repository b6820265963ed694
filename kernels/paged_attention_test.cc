#include "kernels/paged_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

using ::mneme::kernels::testing::BitwiseEqual;
using ::mneme::kernels::testing::RandomFloats;

constexpr int64_t kSlots = 4;
constexpr int64_t kMaxPages = 48;

at::Tensor Ints(const std::vector<int32_t>& values) {
  at::Tensor result = at::empty({static_cast<int64_t>(values.size())}, at::kInt);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<int32_t>());
  return result;
}

struct Shape {
  int64_t query_heads;
  int64_t kv_heads;
  int64_t head_size;
};

// A pool of NaN with every slot's pages scattered over it, and lengths that start uneven.
class World {
 public:
  World(std::mt19937& random, Shape shape, at::ScalarType type)
      : shape_(shape),
        pool_(at::full({kSlots * shape.kv_heads * kMaxPages, PageElements(shape.head_size)},
                       std::numeric_limits<float>::quiet_NaN(), type)),
        table_(at::empty({kSlots, shape.kv_heads, kMaxPages}, at::kInt)),
        lengths_(at::zeros({kSlots, shape.kv_heads}, at::kInt)) {
    auto* pages = table_.mutable_data_ptr<int32_t>();
    std::iota(pages, pages + table_.numel(), 0);
    std::shuffle(pages, pages + table_.numel(), random);
  }

  int32_t& length(int64_t slot, int64_t head) {
    return lengths_.mutable_data_ptr<int32_t>()[slot * shape_.kv_heads + head];
  }
  int32_t& page(int64_t slot, int64_t head, int64_t index) {
    return table_.mutable_data_ptr<int32_t>()[(slot * shape_.kv_heads + head) * kMaxPages + index];
  }
  AttentionBatch Batch(const std::vector<int32_t>& slots, const std::vector<int32_t>& counts) {
    std::vector<int32_t> start = {0};
    for (const int32_t count : counts) start.push_back(start.back() + count);
    return {Ints(slots), Ints(start), table_, lengths_, {}, {}, {}, {}};
  }
  void Advance(const AttentionBatch& batch) {
    for (int64_t s = 0; s < batch.seq_slot.size(0); ++s) {
      const auto* start = batch.query_start.const_data_ptr<int32_t>();
      for (int64_t h = 0; h < shape_.kv_heads; ++h) {
        length(batch.seq_slot.const_data_ptr<int32_t>()[s], h) += start[s + 1] - start[s];
      }
    }
  }
  // The key (offset 0) or value of an entry, as stored.
  float At(int64_t slot, int64_t head, int64_t entry, int64_t d, bool value) {
    const int64_t row = page(slot, head, entry / kPageEntries);
    const int64_t e = entry % kPageEntries;
    const int64_t column = value ? (kPageEntries + e) * shape_.head_size + d : d * kPageEntries + e;
    const int64_t index = row * PageElements(shape_.head_size) + column;
    if (pool_.scalar_type() == at::kFloat) return pool_.const_data_ptr<float>()[index];
    return static_cast<float>(pool_.const_data_ptr<c10::BFloat16>()[index]);
  }
  const at::Tensor& pool() const { return pool_; }
  const Shape& shape() const { return shape_; }

 private:
  Shape shape_;
  at::Tensor pool_;
  at::Tensor table_;
  at::Tensor lengths_;
};

// Attention by its definition, in double.
at::Tensor Reference(World& world, const AttentionBatch& batch, const at::Tensor& q,
                     const at::Tensor& q_sink, double scale) {
  const auto [query_heads, kv_heads, head_size] = world.shape();
  at::Tensor out = at::zeros_like(q);
  const auto* start = batch.query_start.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < batch.seq_slot.size(0); ++s) {
    const int64_t slot = batch.seq_slot.const_data_ptr<int32_t>()[s];
    const int64_t window = batch.window.defined() ? batch.window.const_data_ptr<int32_t>()[s] : 0;
    const int64_t sinks = batch.sinks.defined() ? batch.sinks.const_data_ptr<int32_t>()[s] : 0;
    for (int64_t r = start[s]; r < start[s + 1]; ++r) {
      for (int64_t head = 0; head < query_heads; ++head) {
        const int64_t kv = head / (query_heads / kv_heads);
        const int64_t own = world.length(slot, kv) + r - start[s];
        std::vector<double> sum(head_size, 0.0);
        double total = 0;
        for (int64_t j = 0; j <= own; ++j) {
          if (world.page(slot, kv, j / kPageEntries) < 0) continue;
          if (window > 0 && j <= own - window && j >= sinks) continue;
          if (batch.hidden.defined()) {
            const int64_t c = j - batch.hidden_from.const_data_ptr<int32_t>()[s];
            const int64_t width = batch.hidden.size(1);
            if (c >= 0 && c < width && batch.hidden.const_data_ptr<uint8_t>()[r * width + c] != 0) {
              continue;
            }
          }
          const at::Tensor& from = j < sinks && q_sink.defined() ? q_sink : q;
          const float* x = from.const_data_ptr<float>() + (r * query_heads + head) * head_size;
          double score = 0;
          for (int64_t d = 0; d < head_size; ++d) score += x[d] * world.At(slot, kv, j, d, false);
          const double weight = std::exp(score * scale);
          total += weight;
          for (int64_t d = 0; d < head_size; ++d) {
            sum[d] += weight * world.At(slot, kv, j, d, true);
          }
        }
        float* y = out.mutable_data_ptr<float>() + (r * query_heads + head) * head_size;
        for (int64_t d = 0; d < head_size && total > 0; ++d)
          y[d] = static_cast<float>(sum[d] / total);
      }
    }
  }
  return out;
}

// Each test goes through both types of page.
class PagedAttentionTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!SetVariant(GetParam())) {
      GTEST_SKIP() << "this processor has no " << VariantName(GetParam());
    }
  }

  template <typename Body>
  void ForAll(const Body& body) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(c10::toString(type));
      body(type);
      if (HasFatalFailure()) return;
    }
  }

  // Writes `counts` random tokens to the slots and moves their lengths on.
  void Fill(World& world, const std::vector<int32_t>& slots, const std::vector<int32_t>& counts) {
    const AttentionBatch batch = world.Batch(slots, counts);
    const int64_t rows = std::accumulate(counts.begin(), counts.end(), 0);
    const auto [query_heads, kv_heads, head_size] = world.shape();
    KvWrite(RandomFloats(random_, {rows, kv_heads, head_size}),
            RandomFloats(random_, {rows, kv_heads, head_size}), batch, world.pool());
    world.Advance(batch);
  }

  const testing::Settings settings_;
  std::mt19937 random_{20261121};
};

TEST_P(PagedAttentionTest, MatchesDefinitionInDouble) {
  ForAll([&](at::ScalarType type) {
    for (const Shape shape : {Shape{9, 3, 64}, Shape{4, 4, 32}, Shape{5, 1, 80}, Shape{32, 1, 16},
                              Shape{2, 1, 128}, Shape{4, 2, 256}, Shape{3, 3, 8}}) {
      World world(random_, shape, type);
      for (int64_t slot = 0; slot < kSlots; ++slot) {
        for (int64_t h = 0; h < shape.kv_heads; ++h) {
          // Policies leave other lengths in every head.
          world.length(slot, h) = 0;
        }
      }
      Fill(world, {0, 1, 2, 3}, {300, 17, 150, 1});
      for (int64_t h = 0; h < shape.kv_heads; ++h)
        world.length(0, h) -= static_cast<int32_t>(7 * h);
      for (const bool masked : {false, true}) {
        AttentionBatch batch = world.Batch({2, 0, 3, 1}, {1, 19, 1, 40});
        if (masked) {
          batch.window = Ints({33, 100, 0, 20});
          batch.sinks = Ints({4, 20, 0, 5});
          world.page(0, 0, 9) = -1;
          world.page(2, 0, 0) = -1;
        }
        const auto k = RandomFloats(random_, {61, shape.kv_heads, shape.head_size});
        const auto v = RandomFloats(random_, {61, shape.kv_heads, shape.head_size});
        const auto q = RandomFloats(random_, {61, shape.query_heads, shape.head_size});
        at::Tensor q_sink;
        if (masked) q_sink = RandomFloats(random_, {61, shape.query_heads, shape.head_size});
        KvWrite(k, v, batch, world.pool());
        const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_size));
        const at::Tensor expected = Reference(world, batch, q, q_sink, scale);
        const at::Tensor out = at::full_like(q, 99.0f);
        std::optional<at::Tensor> sink;
        if (masked) sink = q_sink;
        PagedAttentionOut(q, world.pool(), batch, scale, out, sink);
        // Weights sum to one and values are of unit size: a float32 softmax is good to a few 1e-6.
        EXPECT_LT(out.sub(expected).abs().max().item<float>(), 5e-6f)
            << shape.head_size << (masked ? " masked" : "");
      }
    }
  });
}

TEST_P(PagedAttentionTest, HiddenEntriesAreLeftOut) {
  ForAll([&](at::ScalarType type) {
    const Shape shape{6, 2, 32};
    World world(random_, shape, type);
    Fill(world, {0, 1, 2}, {140, 20, 5});
    AttentionBatch batch = world.Batch({0, 1, 2}, {30, 9, 30});
    const auto k = RandomFloats(random_, {69, shape.kv_heads, shape.head_size});
    const auto v = RandomFloats(random_, {69, shape.kv_heads, shape.head_size});
    const auto q = RandomFloats(random_, {69, shape.query_heads, shape.head_size});
    KvWrite(k, v, batch, world.pool());
    const at::Tensor plain = at::empty_like(q);
    PagedAttentionOut(q, world.pool(), batch, 0.2, plain);
    // Columns that lie across pages and splits; the second sequence hides nothing.
    batch.hidden = RandomFloats(random_, {69, 70}).gt(0.3).to(at::kByte);
    batch.hidden.narrow(0, 30, 9).zero_();
    batch.hidden.narrow(0, 39, 1).fill_(1);  // sees but the entries before
    batch.hidden.narrow(0, 40, 1).zero_();
    batch.hidden_from = Ints({100, 0, 0});
    const at::Tensor out = at::full_like(q, 99.0f);
    PagedAttentionOut(q, world.pool(), batch, 0.2, out);
    const at::Tensor expected = Reference(world, batch, q, at::Tensor(), 0.2);
    EXPECT_LT(out.sub(expected).abs().max().item<float>(), 5e-6f);
    EXPECT_TRUE(BitwiseEqual(out.narrow(0, 30, 9), plain.narrow(0, 30, 9)));
    EXPECT_TRUE(BitwiseEqual(out.narrow(0, 40, 1), plain.narrow(0, 40, 1)));
    // Row 39 hides all that its sequence has.
    EXPECT_EQ(out[39].abs().sum().item<float>(), 0.0f);
  });
}

// Everything that a query's result may not depend on: the chunk it came in, the sequences beside
// it, the threads.
TEST_P(PagedAttentionTest, QueryDoesNotDependOnTheRestOfTheCall) {
  ForAll([&](at::ScalarType type) {
    const Shape shape{6, 2, 64};
    constexpr int32_t kTokens = 400;
    const auto k = RandomFloats(random_, {kTokens, shape.kv_heads, shape.head_size});
    const auto v = RandomFloats(random_, {kTokens, shape.kv_heads, shape.head_size});
    const auto q = RandomFloats(random_, {kTokens, shape.query_heads, shape.head_size});
    const auto q_sink = RandomFloats(random_, {kTokens, shape.query_heads, shape.head_size});
    for (const int32_t window : {0, 150}) {
      at::Tensor expected;
      for (int trial = 0; trial < 9; ++trial) {
        SetNumThreads(1 + trial % 4);
        World world(random_, shape, type);
        Fill(world, {1, 2}, {33, 200});
        const at::Tensor out = at::empty_like(q);
        for (int32_t done = 0; done < kTokens;) {
          // Trial 0: one call; 1: token by token; later: random chunks, with others in the batch.
          int32_t count = trial == 0   ? kTokens
                          : trial == 1 ? 1
                                       : 1 + static_cast<int32_t>(random_() % 90);
          count = std::min(count, kTokens - done);
          const int32_t before = trial > 2 ? static_cast<int32_t>(random_() % 3) : 0;
          const int32_t after = trial > 3 ? static_cast<int32_t>(random_() % 20) : 0;
          AttentionBatch batch = world.Batch({1, 0, 2}, {before, count, after});
          batch.window = Ints({0, window, 10});
          batch.sinks = Ints({0, 5, 1});
          const auto with_others = [&](const at::Tensor& x) {
            return at::cat({RandomFloats(random_, {before, x.size(1), x.size(2)}),
                            x.narrow(0, done, count),
                            RandomFloats(random_, {after, x.size(1), x.size(2)})});
          };
          KvWrite(with_others(k), with_others(v), batch, world.pool());
          const at::Tensor queries = with_others(q);
          const at::Tensor all = at::empty_like(queries);
          PagedAttentionOut(queries, world.pool(), batch, 0.125, all, with_others(q_sink));
          out.narrow(0, done, count).copy_(all.narrow(0, before, count));
          world.Advance(batch);
          // The neighbours start again before they outgrow their pages.
          for (int64_t h = 0; h < shape.kv_heads; ++h) {
            world.length(1, h) = std::min(world.length(1, h), 300);
            world.length(2, h) = std::min(world.length(2, h), 300);
          }
          done += count;
        }
        if (trial == 0) expected = out;
        ASSERT_TRUE(BitwiseEqual(out, expected)) << "window " << window << " trial " << trial;
      }
    }
  });
}

TEST_P(PagedAttentionTest, ReadsStridedTensors) {
  ForAll([&](at::ScalarType type) {
    const Shape shape{6, 2, 32};
    World world(random_, shape, type);
    Fill(world, {0}, {20});
    const AttentionBatch batch = world.Batch({0}, {5});
    const at::Tensor qkv = RandomFloats(random_, {5, 10, 32});
    const at::Tensor q = qkv.narrow(1, 0, 6);
    KvWrite(qkv.narrow(1, 6, 2), qkv.narrow(1, 8, 2), batch, world.pool());
    const at::Tensor wide = at::zeros({5, 8, 32});
    PagedAttentionOut(q, world.pool(), batch, 0.2, wide.narrow(1, 1, 6));
    const at::Tensor expected = at::empty({5, 6, 32}, at::kFloat);
    PagedAttentionOut(q.contiguous(), world.pool(), batch, 0.2, expected);
    EXPECT_TRUE(BitwiseEqual(wide.narrow(1, 1, 6), expected));
    EXPECT_EQ(wide.select(1, 0).abs().sum().item<float>(), 0.0f);
    // A page table for all layers at once, and one layer's view of it.
    AttentionBatch view = batch;
    view.page_table = at::full({kSlots, 3, 2, kMaxPages}, -5, at::kInt);
    view.page_table.select(1, 1).copy_(batch.page_table);
    view.page_table = view.page_table.select(1, 1);
    view.lengths = at::full({kSlots, 3, 2}, 7, at::kInt);
    view.lengths.select(1, 1).copy_(batch.lengths);
    view.lengths = view.lengths.select(1, 1);
    const at::Tensor out = at::empty({5, 6, 32}, at::kFloat);
    PagedAttentionOut(q, world.pool(), view, 0.2, out);
    EXPECT_TRUE(BitwiseEqual(out, expected));
  });
}

TEST_P(PagedAttentionTest, LargeScoresDoNotOverflow) {
  ForAll([&](at::ScalarType type) {
    const Shape shape{1, 1, 8};
    World world(random_, shape, type);
    const AttentionBatch batch = world.Batch({0}, {200});
    const at::Tensor k = RandomFloats(random_, {200, 1, 8});
    KvWrite(k, k, batch, world.pool());
    const at::Tensor q = RandomFloats(random_, {200, 1, 8}).mul_(1e4);
    const at::Tensor out = at::empty_like(q);
    PagedAttentionOut(q, world.pool(), batch, 1.0, out);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
  });
}

TEST_P(PagedAttentionTest, QueryThatSeesOnlyItselfReturnsItsValue) {
  const Shape shape{2, 1, 16};
  World world(random_, shape, at::kFloat);
  Fill(world, {0}, {32});
  AttentionBatch batch = world.Batch({0}, {1});
  batch.window = Ints({1});
  const at::Tensor v = RandomFloats(random_, {1, 1, 16});
  KvWrite(v, v, batch, world.pool());
  const at::Tensor out = at::empty({1, 2, 16}, at::kFloat);
  PagedAttentionOut(RandomFloats(random_, {1, 2, 16}), world.pool(), batch, 1.0, out);
  EXPECT_TRUE(BitwiseEqual(out.select(1, 0), v.select(1, 0)));
  EXPECT_TRUE(BitwiseEqual(out.select(1, 1), v.select(1, 0)));
}

TEST_P(PagedAttentionTest, WrongArgumentsAreRefused) {
  ForAll([&](at::ScalarType type) {
    using ::testing::HasSubstr;
    const Shape shape{6, 2, 32};
    World world(random_, shape, type);
    const at::Tensor q = at::zeros({3, 6, 32});
    const at::Tensor k = at::zeros({3, 2, 32});
    const auto message = [&](const AttentionBatch& batch, const at::Tensor& query) -> std::string {
      try {
        KvWrite(k, k, batch, world.pool());
        PagedAttentionOut(query, world.pool(), batch, 1.0, at::empty_like(query));
      } catch (const c10::Error& error) {
        return error.what_without_backtrace();
      }
      return "no error";
    };
    EXPECT_EQ(message(world.Batch({0}, {3}), q), "no error");
    EXPECT_THAT(message(world.Batch({0}, {2}), q), HasSubstr("query_start must go from 0"));
    EXPECT_THAT(message(world.Batch({kSlots}, {3}), q), HasSubstr("slot 4 is not one of 4"));
    EXPECT_THAT(message(world.Batch({0}, {3}), at::zeros({3, 5, 32})), HasSubstr("5 query heads"));
    EXPECT_THAT(message(world.Batch({0}, {3}), at::zeros({3, 6, 33})), HasSubstr("head size"));
    AttentionBatch batch = world.Batch({0}, {3});
    batch.window = Ints({1, 2});
    EXPECT_THAT(message(batch, q), HasSubstr("window must have size 1"));
    batch.window = at::Tensor();
    batch.hidden = at::zeros({3, 4}, at::kByte);
    EXPECT_THAT(message(batch, q), HasSubstr("hidden needs hidden_from"));
    batch.hidden = at::zeros({2, 4}, at::kByte);
    EXPECT_THAT(message(batch, q), HasSubstr("hidden must have size 3"));
    world.length(1, 0) = kMaxPages * kPageEntries - 2;
    EXPECT_THAT(message(world.Batch({1}, {3}), q), HasSubstr("page table has room for 768"));
    world.page(2, 1, 0) = -1;
    EXPECT_THAT(message(world.Batch({2}, {3}), q), HasSubstr("has no page for its new entries"));
  });
}

INSTANTIATE_TEST_SUITE_P(Variants, PagedAttentionTest,
                         ::testing::Values(Variant::kPortable, Variant::kAvx2, Variant::kAvx512Vnni,
                                           Variant::kAmx),
                         [](const auto& info) { return VariantName(info.param); });

}  // namespace
}  // namespace mneme::kernels

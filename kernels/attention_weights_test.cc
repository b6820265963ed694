#include "kernels/attention_weights.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/parallel.h"
#include "kernels/test_support.h"

namespace mneme::kernels {
namespace {

using ::mneme::kernels::testing::BitwiseEqual;
using ::mneme::kernels::testing::RandomFloats;

constexpr int64_t kMaxPages = 40;

struct Shape {
  int64_t query_heads;
  int64_t kv_heads;
  int64_t head_size;
};

// Two sequences, whose heads have different lengths; the first brings nothing, the second `rows`
// new tokens. Pages lie anywhere in a pool of NaN.
struct Step {
  Step(std::mt19937& random, const Shape& shape, at::ScalarType type, int64_t rows)
      : shape(shape),
        num_rows(rows),
        pool(at::full({2 * shape.kv_heads * kMaxPages, PageElements(shape.head_size)},
                      std::numeric_limits<float>::quiet_NaN(), type)) {
    batch.seq_slot = at::arange(2, at::kInt);
    batch.query_start = at::tensor({int64_t{0}, int64_t{0}, rows}, at::kInt);
    batch.page_table = at::empty({2, shape.kv_heads, kMaxPages}, at::kInt);
    batch.lengths = at::empty({2, shape.kv_heads}, at::kInt);
    auto* const pages = batch.page_table.mutable_data_ptr<int32_t>();
    std::iota(pages, pages + batch.page_table.numel(), 0);
    std::shuffle(pages, pages + batch.page_table.numel(), random);
    // What was there before is written as a step of its own.
    std::vector<int64_t> present;
    for (int64_t i = 0; i < 2 * shape.kv_heads; ++i) present.push_back(random() % 300);
    const int64_t most = *std::max_element(present.begin(), present.end());
    batch.lengths.zero_();
    AttentionBatch before = batch;
    before.query_start = at::tensor({int64_t{0}, most, 2 * most}, at::kInt);
    KvWrite(RandomFloats(random, {2 * most, shape.kv_heads, shape.head_size}),
            RandomFloats(random, {2 * most, shape.kv_heads, shape.head_size}), before, pool);
    std::copy(present.begin(), present.end(), batch.lengths.mutable_data_ptr<int32_t>());
    q = RandomFloats(random, {rows, shape.query_heads, shape.head_size});
    v = RandomFloats(random, {rows, shape.kv_heads, shape.head_size});
    KvWrite(RandomFloats(random, {rows, shape.kv_heads, shape.head_size}), v, batch, pool);
  }

  int64_t Length(int64_t head) const {
    return batch.lengths.const_data_ptr<int32_t>()[shape.kv_heads + head];
  }
  int64_t most_entries() const {
    int64_t most = 0;
    for (int64_t h = 0; h < shape.kv_heads; ++h) most = std::max(most, Length(h) + num_rows);
    return most;
  }
  at::Tensor Weights(int64_t first, int64_t count) const {
    at::Tensor out = at::full({shape.kv_heads, count, most_entries()}, 7.0f);
    AttentionWeightsOut(q, pool, batch, kScale,
                        {.sequence = 1, .first_row = first, .num_rows = count}, out);
    return out;
  }
  float Key(int64_t head, int64_t entry, int64_t d) const {
    const int64_t page =
        batch.page_table
            .const_data_ptr<int32_t>()[(shape.kv_heads + head) * kMaxPages + entry / kPageEntries];
    return pool[page][d * kPageEntries + entry % kPageEntries].item<float>();
  }

  static constexpr double kScale = 0.3;
  Shape shape;
  int64_t num_rows;
  at::Tensor pool;
  AttentionBatch batch;
  at::Tensor q;
  at::Tensor v;
};

class AttentionWeightsTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (!SetVariant(GetParam())) {
      GTEST_SKIP() << "this processor has no " << VariantName(GetParam());
    }
  }

  const testing::Settings settings_;
};

TEST_P(AttentionWeightsTest, EqualTheDefinition) {
  std::mt19937 random(1);
  // The last one: more query heads per kv head than a tile has rows.
  for (const Shape& shape : {Shape{6, 2, 16}, Shape{3, 3, 8}, Shape{56, 2, 16}}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const Step step(random, shape, type, 13);
      const at::Tensor weights = step.Weights(0, step.num_rows);
      const int64_t group = shape.query_heads / shape.kv_heads;
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t entries = step.Length(h) + step.num_rows;
        std::vector<std::vector<float>> keys(entries, std::vector<float>(shape.head_size));
        for (int64_t j = 0; j < entries; ++j) {
          for (int64_t d = 0; d < shape.head_size; ++d) keys[j][d] = step.Key(h, j, d);
        }
        for (int64_t i = 0; i < step.num_rows; ++i) {
          std::vector<double> expected(step.most_entries(), 0.0);
          const int64_t own = step.Length(h) + i;
          for (int64_t g = 0; g < group; ++g) {
            const float* const query = step.q.const_data_ptr<float>() +
                                       (i * shape.query_heads + h * group + g) * shape.head_size;
            std::vector<double> row(own + 1);
            double total = 0;
            for (int64_t j = 0; j <= own; ++j) {
              double score = 0;
              for (int64_t d = 0; d < shape.head_size; ++d) score += query[d] * keys[j][d];
              row[j] = std::exp(score * Step::kScale);
              total += row[j];
            }
            for (int64_t j = 0; j <= own; ++j) {
              expected[j] += row[j] / total / static_cast<double>(group);
            }
          }
          const float* const actual =
              weights.const_data_ptr<float>() + (h * step.num_rows + i) * step.most_entries();
          for (int64_t j = 0; j < step.most_entries(); ++j) {
            ASSERT_NEAR(actual[j], expected[j], 2e-6) << "head " << h << " row " << i << " " << j;
          }
        }
      }
    }
  }
}

TEST_P(AttentionWeightsTest, RowsDoNotDependOnOthersNorOnThreads) {
  std::mt19937 random(2);
  const Step step(random, {6, 2, 16}, at::kFloat, 21);
  SetNumThreads(1);
  const at::Tensor together = step.Weights(0, 21);
  SetNumThreads(3);
  EXPECT_TRUE(BitwiseEqual(step.Weights(0, 21), together));
  for (const int64_t first : {0, 5, 20}) {
    EXPECT_TRUE(BitwiseEqual(step.Weights(first, 1), together.narrow(1, first, 1).contiguous()));
  }
  EXPECT_TRUE(BitwiseEqual(step.Weights(3, 11), together.narrow(1, 3, 11).contiguous()));
}

// Weights times values is what attention gives.
TEST_P(AttentionWeightsTest, AgreeWithTheAttentionItself) {
  std::mt19937 random(3);
  const Shape shape{2, 2, 16};
  Step step(random, shape, at::kFloat, 9);
  step.batch.lengths.zero_();
  KvWrite(RandomFloats(random, {9, 2, 16}), step.v, step.batch, step.pool);
  at::Tensor attended = at::empty({9, 2, 16});
  PagedAttentionOut(step.q, step.pool, step.batch, Step::kScale, attended);
  const at::Tensor product = at::matmul(step.Weights(0, 9), step.v.transpose(0, 1));
  EXPECT_LE((product.transpose(0, 1) - attended).abs().max().item<float>(), 2e-6f);
}

TEST_P(AttentionWeightsTest, WrongRowsAreRefused) {
  std::mt19937 random(4);
  const Step step(random, {2, 1, 8}, at::kFloat, 4);
  EXPECT_THROW(step.Weights(2, 3), c10::Error);
  EXPECT_THROW(step.Weights(-1, 2), c10::Error);
  EXPECT_THROW(AttentionWeightsOut(step.q, step.pool, step.batch, 1, {1, 0, 4},
                                   at::empty({1, 4, step.most_entries() - 1})),
               c10::Error);
}

INSTANTIATE_TEST_SUITE_P(Variants, AttentionWeightsTest,
                         ::testing::Values(Variant::kPortable, Variant::kAvx2,
                                           Variant::kAvx512Vnni),
                         [](const auto& info) { return VariantName(info.param); });

}  // namespace
}  // namespace mneme::kernels

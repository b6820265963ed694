// Memory that is stored in turns and comes back: the same bits, whatever was cut where.
#include "common/snapshot/chunk.h"

#include <cstring>
#include <limits>

#include "common/crypto/crc32c.h"
#include "common/snapshot/test_memory.h"
#include "gmock/gmock.h"

namespace mneme::snapshot {
namespace {

using ::testing::HasSubstr;

memory::KvShape SmallShape() { return {.num_layers = 3, .num_kv_heads = 2, .head_size = 8}; }

struct Kind {
  const char* name;
  at::ScalarType dtype;
  memory::KvShape shape;
  std::shared_ptr<const memory::MemoryPolicy> policy;
};

std::vector<Kind> Kinds() {
  std::vector<Kind> kinds;
  memory::KvShape sliding = SmallShape();
  sliding.sliding_windows = {0, 40, 70};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    kinds.push_back({"full", dtype, SmallShape(), memory::FullPolicy()});
    kinds.push_back({"window", dtype, SmallShape(), *memory::WindowPolicy(4, 50)});
    kinds.push_back({"sliding", dtype, sliding, memory::FullPolicy()});
    kinds.push_back({"both", dtype, sliding, *memory::WindowPolicy(18, 60)});
  }
  return kinds;
}

class ChunkKindTest : public ::testing::TestWithParam<int> {
 protected:
  Kind kind_ = Kinds()[GetParam()];
  std::unique_ptr<memory::KvPool> pool_ = MakePool(8, kind_.dtype, 600);
  std::unique_ptr<memory::KvPool> other_ = MakePool(8, kind_.dtype, 600);
};

TEST_P(ChunkKindTest, MemoryStoredInTurnsComesBackBitForBit) {
  FillWithNoise(*pool_, 1);
  FillWithNoise(*other_, 2);
  const v1::Encoding exact = ExactEncoding(kind_.dtype);
  const ChunkPlan plan(kind_.shape, exact);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::mt19937_64 random(seed);
    memory::KvSequence sequence(pool_.get(), kind_.shape, kind_.policy);
    Stored stored;
    int64_t stored_up_to = 0;
    const int turns = 1 + static_cast<int>(random() % 6);
    for (int turn = 0; turn < turns; ++turn) {
      Grow(sequence, 1 + static_cast<int64_t>(random() % (seed % 4 == 0 ? 200 : 45)));
      // Sometimes a turn is not stored, or only a part of it yet.
      if (random() % 4 == 0 && turn + 1 < turns) continue;
      const int64_t end =
          random() % 3 == 0 && turn + 1 < turns
              ? stored_up_to +
                    static_cast<int64_t>(random() % (sequence.num_tokens() - stored_up_to + 1))
              : sequence.num_tokens();
      Store(sequence, stored_up_to, end, exact, &stored);
      stored_up_to = end;
    }
    const std::vector<int32_t> tokens = SomeTokens(sequence.num_tokens() + 3);
    stored.manifest = MakeManifest(sequence, {}, tokens, stored.chunks, 0);
    const absl::Status sound =
        CheckManifest(stored.manifest, {}, kind_.shape, *kind_.policy, tokens);
    ASSERT_TRUE(sound.ok()) << sound << " seed " << seed;
    memory::KvSequence restored(other_.get(), kind_.shape, kind_.policy);
    const absl::Status status = Restore(stored, &restored);
    ASSERT_TRUE(status.ok()) << status;
    ExpectSameMemory(restored, sequence);
    // It goes on as the first one does.
    Grow(restored, 33);
    Grow(sequence, 33);
    EXPECT_EQ(restored.num_pages(), sequence.num_pages());
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, ChunkKindTest, ::testing::Range(0, 8),
                         [](const ::testing::TestParamInfo<int>& info) {
                           const Kind kind = Kinds()[info.param];
                           return std::string(kind.name) +
                                  (kind.dtype == at::kFloat ? "Float32" : "Bfloat16");
                         });

class ChunkTest : public ::testing::Test {
 protected:
  ChunkTest() { FillWithNoise(*pool_, 3); }

  memory::KvSequence Sequence(int64_t num_tokens) {
    memory::KvSequence sequence(pool_.get(), SmallShape(), memory::FullPolicy());
    Grow(sequence, num_tokens);
    return sequence;
  }

  std::unique_ptr<memory::KvPool> pool_ = MakePool(8, at::kFloat, 600);
};

TEST_F(ChunkTest, AFullTileOfAnAlignedPageIsThePage) {
  const memory::KvSequence sequence = Sequence(64);
  const auto chunk = ExportChunk(sequence, {0, 3, 16, 32}, v1::ENCODING_FLOAT32);
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  const int64_t page_bytes = pool_->page_bytes();
  ASSERT_EQ((*chunk)->payload.size(), static_cast<size_t>(3 * 2 * 2 * page_bytes));
  const char* at = (*chunk)->payload.data();
  for (int64_t layer = 0; layer < 3; ++layer) {
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t page = 1; page < 3; ++page, at += page_bytes) {
        const char* const in_pool = static_cast<const char*>(pool_->tensor().data_ptr()) +
                                    sequence.page_id(layer, head, page) * page_bytes;
        EXPECT_EQ(std::memcmp(at, in_pool, page_bytes), 0) << layer << head << page;
      }
    }
  }
}

TEST_F(ChunkTest, PlansFillChunksAndEndAtPages) {
  // SmolLM2-135M in bfloat16: 23,040 bytes a token.
  const ChunkPlan small({.num_layers = 30, .num_kv_heads = 3, .head_size = 64},
                        v1::ENCODING_BFLOAT16);
  EXPECT_EQ(small.FullEnd(0), 32);
  EXPECT_EQ(small.FullEnd(5), 48);
  EXPECT_EQ(small.Ranges(5, 48).size(), 1U);
  // Llama-3-8B in float32: 16 tokens of all layers are 4 MiB.
  const ChunkPlan large({.num_layers = 32, .num_kv_heads = 8, .head_size = 128},
                        v1::ENCODING_FLOAT32);
  const std::vector<ChunkRange> ranges = large.Ranges(0, large.FullEnd(0));
  EXPECT_EQ(large.FullEnd(0), 16);
  ASSERT_EQ(ranges.size(), 4U);
  EXPECT_EQ(ranges[3].first_layer, 24);
  EXPECT_EQ(ranges[3].num_layers, 8);
  // So wide that not even a page of one layer fits.
  const ChunkPlan wide({.num_layers = 2, .num_kv_heads = 128, .head_size = 256},
                       v1::ENCODING_FLOAT32);
  EXPECT_EQ(wide.FullEnd(7), 11);
}

TEST_F(ChunkTest, AChunkStaysTrueWhileEntriesOfItDie) {
  memory::KvSequence sequence = Sequence(64);
  const auto chunk = ExportChunk(sequence, {0, 3, 0, 64}, v1::ENCODING_FLOAT32);
  ASSERT_TRUE(sequence.Apply({.forgotten = {{.layer = 1, .begin = 16, .end = 48}}}).ok());
  memory::KvSequence restored(pool_.get(), SmallShape(), memory::FullPolicy());
  std::vector<EntryRuns> held(6, EntryRuns{{0, 64}});
  held[2] = held[3] = {{0, 16}, {48, 64}};
  ASSERT_TRUE(restored.Restore(64, held).ok());
  ASSERT_TRUE(ImportChunk((*chunk)->chunk, (*chunk)->payload, &restored).ok());
  ExpectSameMemory(restored, sequence);
  EXPECT_FALSE(restored.IsResident(1, 0, 16, 48));
}

TEST_F(ChunkTest, DamagedPayloadsAreDataLoss) {
  const memory::KvSequence sequence = Sequence(20);
  auto chunk = *ExportChunk(sequence, {0, 3, 3, 17}, v1::ENCODING_FLOAT32);
  memory::KvSequence restored = Sequence(20);
  ASSERT_TRUE(ImportChunk(chunk->chunk, chunk->payload, &restored).ok());
  for (const size_t place : {size_t{0}, chunk->payload.size() / 2, chunk->payload.size() - 1}) {
    std::string damaged = chunk->payload;
    damaged[place] ^= 0x10;
    EXPECT_EQ(ImportChunk(chunk->chunk, damaged, &restored).code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(ImportChunk(chunk->chunk, chunk->payload.substr(1), &restored).code(),
            absl::StatusCode::kDataLoss);
  memory::KvSequence shorter = Sequence(19);
  EXPECT_EQ(ImportChunk(chunk->chunk, chunk->payload, &shorter).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ChunkTest, EntriesThatAreNotThereAreRefused) {
  const memory::KvSequence sequence = Sequence(20);
  for (const ChunkRange& range : std::vector<ChunkRange>{{0, 3, 0, 21},
                                                         {0, 4, 0, 20},
                                                         {-1, 1, 0, 20},
                                                         {0, 0, 0, 20},
                                                         {0, 3, 0, 0},
                                                         {0, 3, -1, 5}}) {
    EXPECT_EQ(ExportChunk(sequence, range, v1::ENCODING_FLOAT32).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  memory::KvSequence moved = Sequence(20);
  ASSERT_TRUE(moved.Apply({.kept = {{.layer = 0, .head = 0, .indices = {1, 5, 7}}}}).ok());
  EXPECT_EQ(ExportChunk(moved, {0, 3, 0, 20}, v1::ENCODING_FLOAT32).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// Lossy encodings and the pool of the other type: every number within its bound.
struct Loss {
  at::ScalarType pool;
  v1::Encoding encoding;
};

class LossyChunkTest : public ::testing::TestWithParam<Loss> {};

TEST_P(LossyChunkTest, NumbersComeBackWithinTheirBound) {
  const auto pool = MakePool(8, GetParam().pool, 600);
  FillWithNoise(*pool, 4);
  memory::KvSequence sequence(pool.get(), SmallShape(), memory::FullPolicy());
  Grow(sequence, 77);
  Stored stored;
  Store(sequence, 0, 21, GetParam().encoding, &stored);
  Store(sequence, 21, 77, GetParam().encoding, &stored);
  stored.manifest = MakeManifest(sequence, {}, SomeTokens(77), stored.chunks, 0);
  memory::KvSequence restored(pool.get(), SmallShape(), memory::FullPolicy());
  ASSERT_TRUE(Restore(stored, &restored).ok());
  const bool is_int8 = GetParam().encoding == v1::ENCODING_INT8;
  const bool is_scaled = IsScaled(GetParam().encoding);
  const auto check = [&](const at::Tensor& want, const at::Tensor& have) {
    const at::Tensor wanted = want.to(at::kFloat);
    const at::Tensor scale = wanted.abs().amax(1, true) / (is_int8 ? 127.F : 448.F);
    at::Tensor bound =
        is_int8 ? scale * 0.5F : at::maximum(wanted.abs() * 0x1p-4F, scale * 0x1p-10F);
    if (!is_scaled) bound = at::zeros_like(wanted);
    // A pool or chunk of bfloat16 rounds once more.
    if (GetParam().pool == at::kBFloat16 || GetParam().encoding == v1::ENCODING_BFLOAT16) {
      bound = bound + (wanted.abs() + bound) * 0x1p-8F;
    }
    const at::Tensor error = (have.to(at::kFloat) - wanted).abs();
    EXPECT_TRUE((error <= bound * 1.0001F).all().item<bool>());
    EXPECT_EQ((error > 0).any().item<bool>(), GetParam().pool == at::kFloat || is_scaled);
  };
  ForEachHead(sequence, [&](int64_t layer, int64_t head, const std::vector<int64_t>& indices) {
    const auto want = *sequence.Read(layer, head, indices);
    const auto have = *restored.Read(layer, head, indices);
    check(want.first, have.first);
    check(want.second, have.second);
  });
}

INSTANTIATE_TEST_SUITE_P(Encodings, LossyChunkTest,
                         ::testing::Values(Loss{at::kFloat, v1::ENCODING_INT8},
                                           Loss{at::kFloat, v1::ENCODING_FP8_E4M3},
                                           Loss{at::kBFloat16, v1::ENCODING_INT8},
                                           Loss{at::kBFloat16, v1::ENCODING_FP8_E4M3},
                                           Loss{at::kFloat, v1::ENCODING_BFLOAT16},
                                           Loss{at::kBFloat16, v1::ENCODING_FLOAT32}));

TEST_F(ChunkTest, ScalesThatAreNoNumbersAreRefused) {
  const memory::KvSequence sequence = Sequence(20);
  auto chunk = *ExportChunk(sequence, {0, 3, 0, 20}, v1::ENCODING_INT8);
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(chunk->payload.data(), &infinite, sizeof(infinite));
  chunk->chunk.set_crc32c(crypto::Crc32c(chunk->payload));
  memory::KvSequence restored = Sequence(20);
  const absl::Status status = ImportChunk(chunk->chunk, chunk->payload, &restored);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("scales"));
}

}  // namespace
}  // namespace mneme::snapshot

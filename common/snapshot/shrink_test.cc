// Memory that was made smaller where it is stored comes back as a sequence would have it.
#include "common/snapshot/test_memory.h"
#include "common/stored/recode.h"
#include "common/stored/window.h"
#include "gmock/gmock.h"

namespace mneme::snapshot {
namespace {

v1::Lineage LineageOf(const memory::MemoryPolicy& policy) {
  v1::Lineage lineage;
  lineage.set_model_fingerprint("f00d");
  lineage.set_policy(policy.Describe());
  return lineage;
}

v1::Shape WireShape(const memory::KvShape& shape) {
  v1::Shape wire;
  wire.set_num_layers(static_cast<int32_t>(shape.num_layers));
  wire.set_num_kv_heads(static_cast<int32_t>(shape.num_kv_heads));
  wire.set_head_size(static_cast<int32_t>(shape.head_size));
  return wire;
}

TEST(ShrinkTest, FullMemoryUnderAWindowIsThatOfASequenceThatForgot) {
  const memory::KvShape shape{.num_layers = 3, .num_kv_heads = 2, .head_size = 8};
  for (const int64_t num_tokens : {40, 100, 191, 192, 193}) {
    for (const auto& [sinks, recent] :
         std::vector<std::pair<int64_t, int64_t>>{{4, 20}, {0, 1}, {16, 33}, {17, 64}, {4, 1000}}) {
      const auto pool = MakePool(8, at::kBFloat16, 1000);
      FillWithNoise(*pool, 7);
      memory::KvSequence full(pool.get(), shape, memory::FullPolicy());
      Grow(full, num_tokens);
      Stored stored;
      for (int64_t at = 0; at < num_tokens; at += 32) {
        Store(full, at, std::min(at + 32, num_tokens), v1::ENCODING_BFLOAT16, &stored);
      }
      const std::vector<int32_t> tokens = SomeTokens(num_tokens + 1);
      stored.manifest =
          MakeManifest(full, LineageOf(full.policy()), tokens, stored.chunks, /*now=*/5);

      // What a live sequence does when it has such a policy from here on.
      const auto policy = *memory::WindowPolicy(sinks, recent);
      memory::KvSequence live(pool.get(), shape, policy);
      ASSERT_TRUE(Restore(stored, &live).ok());
      ASSERT_TRUE(live.Forget().ok());

      const stored::Window window{.sinks = sinks, .recent = recent};
      const auto shrunk = stored::Shrink(stored.manifest, window);
      ASSERT_TRUE(shrunk.ok()) << shrunk.status();
      const v1::Manifest expected =
          MakeManifest(live, LineageOf(*policy), tokens, stored.chunks, /*now=*/5);
      EXPECT_EQ(shrunk->SerializeAsString(), expected.SerializeAsString())
          << num_tokens << " " << policy->Describe();
      EXPECT_TRUE(CheckManifest(*shrunk, LineageOf(*policy), shape, *policy, tokens).ok())
          << CheckManifest(*shrunk, LineageOf(*policy), shape, *policy, tokens);
      stored.manifest = *shrunk;
      memory::KvSequence restored(pool.get(), shape, policy);
      ASSERT_TRUE(Restore(stored, &restored).ok());
      ExpectSameMemory(restored, live);
    }
  }
}

TEST(ShrinkTest, RoundedChunksAreThoseThatTheSequenceWouldHaveStored) {
  const memory::KvShape shape{.num_layers = 3, .num_kv_heads = 2, .head_size = 24};
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto pool = MakePool(24, type, 200);
    FillWithNoise(*pool, 3);
    memory::KvSequence sequence(pool.get(), shape, memory::FullPolicy());
    Grow(sequence, 100);
    for (const v1::Encoding encoding : {v1::ENCODING_INT8, v1::ENCODING_FP8_E4M3}) {
      const ChunkRange range{
          .first_layer = 1, .num_layers = 2, .first_serial = 21, .num_serials = 70};
      const auto exact = ExportChunk(sequence, range, ExactEncoding(type));
      const auto expected = ExportChunk(sequence, range, encoding);
      ASSERT_TRUE(exact.ok() && expected.ok());
      const std::vector<EntryRuns> held = {{{0, 100}}};
      const auto kept = stored::HeldRunsOf((*exact)->chunk, WireShape(shape), held);
      ASSERT_TRUE(kept.ok()) << kept.status();
      const auto recoded =
          stored::Recode((*exact)->chunk, (*exact)->payload, WireShape(shape), *kept, encoding);
      ASSERT_TRUE(recoded.ok()) << recoded.status();
      EXPECT_EQ((*recoded)->payload, (*expected)->payload);
      EXPECT_EQ((*recoded)->chunk.SerializeAsString(), (*expected)->chunk.SerializeAsString());
    }
  }
}

TEST(ShrinkTest, RepackedChunksBringTheSameEntries) {
  const memory::KvShape shape{.num_layers = 2, .num_kv_heads = 2, .head_size = 8};
  const auto pool = MakePool(8, at::kFloat, 400);
  FillWithNoise(*pool, 9);
  const auto policy = *memory::WindowPolicy(4, 40);
  memory::KvSequence full(pool.get(), shape, memory::FullPolicy());
  Grow(full, 150);
  Stored stored;
  Store(full, 0, 150, v1::ENCODING_FLOAT32, &stored);
  const std::vector<int32_t> tokens = SomeTokens(150);
  stored.manifest = MakeManifest(full, LineageOf(full.policy()), tokens, stored.chunks, 5);
  stored.manifest = *stored::Shrink(stored.manifest, {.sinks = 4, .recent = 40});
  memory::KvSequence whole(pool.get(), shape, policy);
  ASSERT_TRUE(Restore(stored, &whole).ok());

  const auto held = HeldOf(stored.manifest, shape);
  for (v1::Chunk& chunk : *stored.manifest.mutable_chunks()) {
    const auto kept = stored::HeldRunsOf(chunk, WireShape(shape), *held);
    auto recoded =
        stored::Recode(chunk, stored.payload(chunk), WireShape(shape), *kept, v1::ENCODING_FLOAT32);
    ASSERT_TRUE(recoded.ok()) << recoded.status();
    EXPECT_LT((*recoded)->payload.size(), stored.payload(chunk).size());
    (*recoded)->chunk.set_digest("repacked" + std::string(8, 'x'));
    chunk = (*recoded)->chunk;
    stored.chunks.push_back(chunk);
    stored.payloads.push_back((*recoded)->payload);
  }
  const auto sound = CheckManifest(stored.manifest, LineageOf(*policy), shape, *policy, tokens);
  EXPECT_TRUE(sound.ok()) << sound;
  memory::KvSequence restored(pool.get(), shape, policy);
  ASSERT_TRUE(Restore(stored, &restored).ok());
  ExpectSameMemory(restored, whole);
}

}  // namespace
}  // namespace mneme::snapshot

// Chunks that are written anew, number by number. That the numbers are those that a sequence would
// have stored is held by common/snapshot/shrink_test.cc.
#include "common/stored/recode.h"

#include <bit>
#include <cstring>
#include <random>

#include "common/crypto/crc32c.h"
#include "common/stored/encoding.h"
#include "gtest/gtest.h"

namespace mneme::stored {
namespace {

constexpr int kHeadSize = 4;

v1::Shape SomeShape() {
  v1::Shape shape;
  shape.set_num_layers(3);
  shape.set_num_kv_heads(1);
  shape.set_head_size(kHeadSize);
  return shape;
}

// The number d of a key or value.
float NumberOf(int64_t layer, int64_t serial, int64_t d, bool is_value) {
  return static_cast<float>(layer * 1000 + serial) + 0.25F * static_cast<float>(d) +
         (is_value ? 0.125F : 0);
}

// Layers 1 and 2 of the serials of `heads`, in float32, as docs/snapshots.md has it.
EncodedChunk ChunkOf(int64_t first_serial, int64_t num_serials, const HeadRuns& heads) {
  EncodedChunk chunk;
  for (int64_t h = 0; h < 2; ++h) {
    std::vector<int64_t> serials;
    for (const EntryRun& run : heads[h]) {
      for (int64_t serial = run.begin; serial < run.end; ++serial) serials.push_back(serial);
    }
    const auto total = static_cast<int64_t>(serials.size());
    for (int64_t begin = 0, end = 16 - first_serial % 16; begin < total; begin = end, end += 16) {
      const auto append = [&](int64_t i, int64_t d, bool is_value) {
        const float number = NumberOf(h + 1, serials[i], d, is_value);
        chunk.payload.append(reinterpret_cast<const char*>(&number), sizeof(number));
      };
      for (int64_t d = 0; d < kHeadSize; ++d) {
        for (int64_t i = begin; i < std::min(end, total); ++i) append(i, d, false);
      }
      for (int64_t i = begin; i < std::min(end, total); ++i) {
        for (int64_t d = 0; d < kHeadSize; ++d) append(i, d, true);
      }
    }
    ToWire(heads[h], first_serial, chunk.chunk.add_heads());
  }
  chunk.chunk.set_digest(std::string(16, 'd'));
  chunk.chunk.set_num_bytes(static_cast<uint32_t>(chunk.payload.size()));
  chunk.chunk.set_encoding(v1::ENCODING_FLOAT32);
  chunk.chunk.set_first_layer(1);
  chunk.chunk.set_num_layers(2);
  chunk.chunk.set_first_serial(static_cast<uint64_t>(first_serial));
  chunk.chunk.set_num_serials(static_cast<uint64_t>(num_serials));
  chunk.chunk.set_crc32c(crypto::Crc32c(chunk.payload));
  EXPECT_TRUE(CheckChunk(chunk.chunk, SomeShape()).ok());
  return chunk;
}

TEST(RecodeTest, DeadEntriesGoAndTheOthersAreCopied) {
  const EncodedChunk chunk = ChunkOf(10, 60, {{{10, 70}}, {{12, 30}, {50, 70}}});
  const HeadRuns kept = {{{11, 13}, {40, 66}}, {{29, 30}, {50, 51}, {69, 70}}};
  const auto recoded = Recode(chunk.chunk, chunk.payload, SomeShape(), kept, v1::ENCODING_FLOAT32);
  ASSERT_TRUE(recoded.ok()) << recoded.status();
  ASSERT_TRUE(recoded->has_value());
  const EncodedChunk expected = ChunkOf(10, 60, kept);
  EXPECT_EQ((*recoded)->payload, expected.payload);
  v1::Chunk described = expected.chunk;
  described.clear_digest();
  EXPECT_EQ((*recoded)->chunk.SerializeAsString(), described.SerializeAsString());
  // The same again, of what is 8-bit now.
  for (const v1::Encoding encoding : {v1::ENCODING_INT8, v1::ENCODING_FP8_E4M3}) {
    const auto all = Recode(chunk.chunk, chunk.payload, SomeShape(),
                            {{{10, 70}}, {{12, 30}, {50, 70}}}, encoding);
    ASSERT_TRUE(all.ok()) << all.status();
    EXPECT_EQ((*all)->chunk.encoding(), encoding);
    EXPECT_TRUE(CheckChunk((*all)->chunk, SomeShape()).ok());
    const auto later = Recode((*all)->chunk, (*all)->payload, SomeShape(), kept, v1::ENCODING_INT8);
    const auto at_once = Recode(chunk.chunk, chunk.payload, SomeShape(), kept, encoding);
    ASSERT_TRUE(later.ok() && at_once.ok());
    EXPECT_EQ((*later)->payload, (*at_once)->payload);
    EXPECT_EQ((*later)->chunk.SerializeAsString(), (*at_once)->chunk.SerializeAsString());
  }
}

TEST(RecodeTest, EncodingsOnlyGetNarrower) {
  EXPECT_EQ(Narrower(v1::ENCODING_FLOAT32, v1::ENCODING_INT8), v1::ENCODING_INT8);
  EXPECT_EQ(Narrower(v1::ENCODING_BFLOAT16, v1::ENCODING_FP8_E4M3), v1::ENCODING_FP8_E4M3);
  EXPECT_EQ(Narrower(v1::ENCODING_INT8, v1::ENCODING_FP8_E4M3), v1::ENCODING_INT8);
  EXPECT_EQ(Narrower(v1::ENCODING_FP8_E4M3, v1::ENCODING_FLOAT32), v1::ENCODING_FP8_E4M3);
}

TEST(RecodeTest, HeldEntriesOfAChunkAreThoseThatItHas) {
  const EncodedChunk chunk = ChunkOf(10, 60, {{{10, 70}}, {{12, 30}, {50, 70}}});
  const std::vector<EntryRuns> one = {{{0, 16}, {48, 90}}};
  const auto same = HeldRunsOf(chunk.chunk, SomeShape(), one);
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(NumEntries((*same)[0]), 6 + 22);
  EXPECT_EQ(NumEntries((*same)[1]), 4 + 20);
  const std::vector<EntryRuns> each = {{{0, 90}}, {{20, 21}}, {}};
  const auto own = HeldRunsOf(chunk.chunk, SomeShape(), each);
  EXPECT_EQ(NumEntries((*own)[0]), 1);
  EXPECT_EQ(NumEntries((*own)[1]), 0);
  const auto none = Recode(chunk.chunk, chunk.payload, SomeShape(), {{}, {}}, v1::ENCODING_INT8);
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
}

TEST(RecodeTest, DamagedPayloadIsDataLoss) {
  EncodedChunk chunk = ChunkOf(0, 16, {{{0, 16}}, {{0, 16}}});
  const HeadRuns kept = {{{0, 16}}, {{0, 16}}};
  chunk.payload[100] ^= 1;
  EXPECT_EQ(
      Recode(chunk.chunk, chunk.payload, SomeShape(), kept, v1::ENCODING_INT8).status().code(),
      absl::StatusCode::kDataLoss);
  chunk.payload.pop_back();
  EXPECT_EQ(
      Recode(chunk.chunk, chunk.payload, SomeShape(), kept, v1::ENCODING_INT8).status().code(),
      absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace mneme::stored

// Which stored memory may be used, and that nothing a manifest says can do harm.
#include "common/snapshot/manifest.h"

#include <array>
#include <functional>
#include <limits>

#include "absl/strings/escaping.h"
#include "common/snapshot/test_memory.h"
#include "gmock/gmock.h"

namespace mneme::snapshot {
namespace {

using ::testing::HasSubstr;

const memory::KvShape kShape{.num_layers = 3, .num_kv_heads = 2, .head_size = 8};

v1::Lineage SomeLineage() {
  v1::Lineage lineage;
  lineage.set_model_fingerprint("f00d");
  lineage.set_policy("full");
  return lineage;
}

class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    FillWithNoise(*pool_, 1);
    Grow(sequence_, 100);
    Store(sequence_, 0, 40, v1::ENCODING_FLOAT32, &stored_);
    Store(sequence_, 40, 100, v1::ENCODING_FLOAT32, &stored_);
    stored_.manifest = MakeManifest(sequence_, SomeLineage(), SomeTokens(100), stored_.chunks, 77);
  }

  absl::Status Check(const v1::Manifest& manifest, int64_t num_tokens = 120) {
    return CheckManifest(manifest, SomeLineage(), kShape, *policy_, SomeTokens(num_tokens));
  }

  std::unique_ptr<memory::KvPool> pool_ = MakePool(8, at::kFloat, 200);
  std::shared_ptr<const memory::MemoryPolicy> policy_ = memory::FullPolicy();
  memory::KvSequence sequence_{pool_.get(), kShape, policy_};
  Stored stored_;
};

TEST_F(ManifestTest, SaysWhatTheMemoryIs) {
  const v1::Manifest& manifest = stored_.manifest;
  EXPECT_TRUE(Check(manifest).ok()) << Check(manifest);
  EXPECT_TRUE(Check(manifest, 100).ok());
  EXPECT_EQ(manifest.format_version(), 1U);
  EXPECT_EQ(manifest.num_tokens(), 100U);
  EXPECT_EQ(manifest.created_unix_ms(), 77);
  ASSERT_EQ(manifest.held_size(), 1) << "the same in all heads";
  EXPECT_THAT(manifest.held(0).lengths(), ::testing::ElementsAre(0, 100));
  ASSERT_EQ(manifest.chunks_size(), 2);
  EXPECT_EQ(manifest.chunks(1).first_serial(), 40U);
  EXPECT_EQ(manifest.chunks(1).heads_size(), 0);
}

TEST_F(ManifestTest, TheDigestIsSha256OfLittleEndianIds) {
  // printf '\1\0\0\0\2\1\0\0' | sha256sum
  EXPECT_EQ(absl::BytesToHexString(TokensDigest(std::vector<int32_t>{1, 258})),
            "fb8bbe2ad3ab5292f19bc5d75bbab9b5fbddc5a78ce47ab41b2d3d59bca08596");
}

TEST_F(ManifestTest, AnotherLineageShapeOrTokensAreRefusedAsNotUsable) {
  using Change = std::function<void(v1::Manifest&)>;
  for (const auto& [word, change] : std::vector<std::pair<std::string, Change>>{
           {"format", [](v1::Manifest& m) { m.set_format_version(2); }},
           {"model", [](v1::Manifest& m) { m.mutable_lineage()->set_model_fingerprint("beef"); }},
           {"adapter", [](v1::Manifest& m) { m.mutable_lineage()->set_adapter("a@1"); }},
           {"policy", [](v1::Manifest& m) { m.mutable_lineage()->set_policy("window"); }},
           {"shape", [](v1::Manifest& m) { m.mutable_shape()->set_num_kv_heads(3); }},
           {"tokens", [](v1::Manifest& m) { m.set_num_tokens(121); }},
           {"tokens", [](v1::Manifest& m) { m.set_num_tokens(0); }},
           {"tokens", [](v1::Manifest& m) { m.set_num_tokens(99); }},
           {"tokens",
            [](v1::Manifest& m) { m.set_num_tokens(std::numeric_limits<uint64_t>::max()); }}}) {
    v1::Manifest manifest = stored_.manifest;
    change(manifest);
    const absl::Status status = Check(manifest);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << word;
    EXPECT_THAT(std::string(status.message()), HasSubstr(word));
  }
  EXPECT_EQ(Check(stored_.manifest, 99).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ManifestTest, WhatIsNotSoundIsRefused) {
  using Change = std::function<void(v1::Manifest&)>;
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  const std::vector<Change> changes = {
      [](v1::Manifest& m) { m.clear_held(); },
      [](v1::Manifest& m) { m.add_held(); },
      [](v1::Manifest& m) { m.mutable_held(0)->set_lengths(1, 99); },
      [](v1::Manifest& m) { m.mutable_held(0)->set_lengths(1, 101); },
      [](v1::Manifest& m) { m.mutable_held(0)->set_lengths(1, kHuge); },
      [](v1::Manifest& m) {
        m.mutable_held(0)->set_lengths(0, 2);
        m.mutable_held(0)->set_lengths(1, kHuge);
      },
      [](v1::Manifest& m) {
        for (int i = 0; i < 300; ++i) m.mutable_held(0)->add_lengths(0);
      },
      [](v1::Manifest& m) { m.mutable_chunks()->RemoveLast(); },
      [](v1::Manifest& m) { m.mutable_chunks()->SwapElements(0, 1); },
      [](v1::Manifest& m) { *m.add_chunks() = m.chunks(1); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_num_bytes(5); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_num_serials(kHuge); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_num_serials(0); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_num_serials(39); },
      [](v1::Manifest& m) { m.mutable_chunks(1)->set_first_serial(kHuge - 10); },
      [](v1::Manifest& m) { m.mutable_chunks(1)->set_first_serial(39); },
      [](v1::Manifest& m) { m.mutable_chunks(1)->set_first_serial(41); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_first_layer(1); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_first_layer(-1); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_num_layers(0); },
      [](v1::Manifest& m) {
        m.mutable_chunks(0)->set_num_layers(std::numeric_limits<int32_t>::max());
      },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_encoding(v1::ENCODING_UNSPECIFIED); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_encoding(v1::ENCODING_BFLOAT16); },
      [](v1::Manifest& m) { m.mutable_chunks(0)->add_heads(); },
      [](v1::Manifest& m) {
        for (int i = 0; i < 6; ++i) m.mutable_chunks(0)->add_heads()->add_lengths(kHuge);
      },
      [](v1::Manifest& m) { m.mutable_chunks(0)->set_digest("short"); },
      [](v1::Manifest& m) { m.set_policy_state("?"); },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    v1::Manifest manifest = stored_.manifest;
    changes[i](manifest);
    EXPECT_EQ(Check(manifest).code(), absl::StatusCode::kInvalidArgument)
        << "change " << i << ": " << Check(manifest);
  }
}

TEST_F(ManifestTest, AnyBytesAreRefusedOrHarmless) {
  stored_.manifest.clear_lineage();  // its strings would only fill the log
  const std::string bytes = stored_.manifest.SerializeAsString();
  std::mt19937_64 random(1);
  int64_t num_sound = 0;
  for (int i = 0; i < 30000; ++i) {
    std::string changed = bytes;
    for (int n = 0; n <= static_cast<int>(random() % 3); ++n) {
      changed[random() % changed.size()] = static_cast<char>(random());
    }
    v1::Manifest manifest;
    if (!manifest.ParseFromString(changed) ||
        !CheckManifest(manifest, {}, kShape, *policy_, SomeTokens(120)).ok()) {
      continue;
    }
    ++num_sound;
    memory::KvSequence restored(pool_.get(), kShape, policy_);
    Stored stored = stored_;
    stored.manifest = manifest;
    Restore(stored, &restored).IgnoreError();
  }
  EXPECT_GT(num_sound, 0);
  EXPECT_EQ(pool_->used_pages(), sequence_.num_pages());
}

TEST_F(ManifestTest, GoingBackDropsChunksThatEndLater) {
  std::vector<v1::Chunk> chunks = stored_.chunks;
  EXPECT_EQ(KeepChunksUpTo(100, &chunks), 100);
  EXPECT_EQ(chunks.size(), 2U);
  EXPECT_EQ(KeepChunksUpTo(99, &chunks), 40);
  EXPECT_EQ(chunks.size(), 1U);
  EXPECT_EQ(KeepChunksUpTo(40, &chunks), 40);
  EXPECT_EQ(KeepChunksUpTo(39, &chunks), 0);
  EXPECT_TRUE(chunks.empty());
  // Groups of layers are cut together, also where one was cut elsewhere.
  for (const auto& [layer, first, count] :
       std::vector<std::array<int, 3>>{{0, 0, 32}, {1, 0, 32}, {0, 32, 40}, {1, 32, 10}}) {
    v1::Chunk& chunk = chunks.emplace_back();
    chunk.set_first_layer(layer);
    chunk.set_num_layers(1);
    chunk.set_first_serial(first);
    chunk.set_num_serials(count);
  }
  EXPECT_EQ(KeepChunksUpTo(60, &chunks), 32);
  EXPECT_EQ(chunks.size(), 2U);
}

}  // namespace
}  // namespace mneme::snapshot

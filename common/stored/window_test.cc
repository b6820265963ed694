// What is left of a memory under a tighter window, as manifests say it.
#include "common/stored/window.h"

#include "gmock/gmock.h"

namespace mneme::stored {
namespace {

using ::testing::ElementsAre;

// A memory of `num_tokens` tokens in chunks of 32, all of it held.
v1::Manifest ManifestOf(uint64_t num_tokens) {
  v1::Manifest manifest;
  manifest.mutable_lineage()->set_policy("full");
  manifest.mutable_shape()->set_num_layers(2);
  manifest.mutable_shape()->set_num_kv_heads(1);
  manifest.mutable_shape()->set_head_size(8);
  manifest.set_num_tokens(num_tokens);
  v1::Runs* held = manifest.add_held();
  held->add_lengths(0);
  held->add_lengths(num_tokens);
  for (uint64_t first = 0; first < num_tokens; first += 32) {
    v1::Chunk* chunk = manifest.add_chunks();
    chunk->set_encoding(v1::ENCODING_FLOAT32);
    chunk->set_num_layers(2);
    chunk->set_first_serial(first);
    chunk->set_num_serials(std::min<uint64_t>(32, num_tokens - first));
    chunk->set_num_bytes(static_cast<uint32_t>(2 * chunk->num_serials() * 2 * 8 * 4));
  }
  return manifest;
}

std::vector<uint64_t> FirstSerials(const v1::Manifest& manifest) {
  std::vector<uint64_t> serials;
  for (const v1::Chunk& chunk : manifest.chunks()) serials.push_back(chunk.first_serial());
  return serials;
}

TEST(WindowTest, TextsNameWindowsAndBack) {
  EXPECT_EQ(Describe({}), "full");
  EXPECT_EQ(Describe({.sinks = 4, .recent = 1020}), "window(sinks=4,recent=1020)");
  for (const char* text : {"full", "window(sinks=0,recent=1)", "window(sinks=4,recent=1020)"}) {
    const auto window = ParseWindow(text);
    ASSERT_TRUE(window.has_value()) << text;
    EXPECT_EQ(Describe(*window), text);
  }
  for (const char* text :
       {"", "fuller", "window", "window(sinks=4)", "window(sinks=4,recent=0)",
        "window(sinks=4,recent=-1)", "window(sinks=+4,recent=9)", "window(sinks=4,recent= 9)",
        "window(sinks=4,recent=9))", "window(recent=9,sinks=4)", "h2o(tokens=4,interval=128)"}) {
    EXPECT_FALSE(ParseWindow(text).has_value()) << text;
  }
}

TEST(WindowTest, TighterIsNeitherMoreSinksNorMoreRecent) {
  const Window window{.sinks = 4, .recent = 60};
  EXPECT_TRUE(IsWithin(window, {}));
  EXPECT_TRUE(IsWithin({}, {}));
  EXPECT_TRUE(IsWithin(window, window));
  EXPECT_TRUE(IsWithin({.sinks = 0, .recent = 60}, window));
  EXPECT_FALSE(IsWithin({}, window));
  EXPECT_FALSE(IsWithin({.sinks = 5, .recent = 60}, window));
  EXPECT_FALSE(IsWithin({.sinks = 4, .recent = 61}, window));
}

TEST(WindowTest, WholePagesGoAndChunksWithoutAnyEntry) {
  const v1::Manifest manifest = ManifestOf(200);
  const auto shrunk = Shrink(manifest, {.sinks = 4, .recent = 20});
  ASSERT_TRUE(shrunk.ok()) << shrunk.status();
  EXPECT_EQ(shrunk->lineage().policy(), "window(sinks=4,recent=20)");
  // Query 200 sees the entries from 181 on: page 11, which begins at 176, stays.
  EXPECT_THAT(shrunk->held(0).lengths(), ElementsAre(0, 16, 160, 24));
  EXPECT_THAT(FirstSerials(*shrunk), ElementsAre(0, 160, 192));
  EXPECT_EQ(*MeanHeld(manifest), 200);
  EXPECT_EQ(*MeanHeld(*shrunk), 40);
  // Once more changes nothing; a tighter one goes on from there.
  EXPECT_EQ(Shrink(*shrunk, {.sinks = 4, .recent = 20})->SerializeAsString(),
            shrunk->SerializeAsString());
  EXPECT_THAT(Shrink(*shrunk, {.sinks = 0, .recent = 8})->held(0).lengths(), ElementsAre(192, 8));
  EXPECT_THAT(FirstSerials(*Shrink(*shrunk, {.sinks = 0, .recent = 8})), ElementsAre(192));
}

TEST(WindowTest, MemoryShorterThanTheWindowStaysWhole) {
  for (const int64_t recent : {40, 41, 1000, 24}) {
    const auto shrunk = Shrink(ManifestOf(40), {.sinks = 4, .recent = recent});
    ASSERT_TRUE(shrunk.ok()) << shrunk.status();
    EXPECT_THAT(shrunk->held(0).lengths(), ElementsAre(0, 40)) << recent;
    EXPECT_EQ(shrunk->chunks_size(), 2);
  }
}

TEST(WindowTest, HeadsKeepWhatTheirLayerHad) {
  v1::Manifest manifest = ManifestOf(200);
  // The second layer has a sliding window of its own.
  v1::Runs* held = manifest.add_held();
  held->add_lengths(160);
  held->add_lengths(40);
  const auto shrunk = Shrink(manifest, {.sinks = 0, .recent = 100});
  ASSERT_TRUE(shrunk.ok()) << shrunk.status();
  EXPECT_THAT(shrunk->held(0).lengths(), ElementsAre(96, 104));
  EXPECT_THAT(shrunk->held(1).lengths(), ElementsAre(160, 40));
  EXPECT_EQ(Shrink(manifest, {.sinks = 4, .recent = 100}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(WindowTest, UnsoundManifestsAreRefused) {
  const auto code = [](const v1::Manifest& manifest) {
    return Shrink(manifest, {.sinks = 4, .recent = 20}).status().code();
  };
  v1::Manifest manifest = ManifestOf(200);
  manifest.mutable_shape()->set_num_layers(0);
  EXPECT_EQ(code(manifest), absl::StatusCode::kInvalidArgument);
  manifest.mutable_shape()->set_num_layers(1 << 30);
  manifest.mutable_shape()->set_num_kv_heads(1 << 30);
  EXPECT_EQ(code(manifest), absl::StatusCode::kInvalidArgument);
  manifest = ManifestOf(200);
  manifest.mutable_held(0)->set_lengths(1, 201);
  EXPECT_EQ(code(manifest), absl::StatusCode::kInvalidArgument);
  manifest = ManifestOf(200);
  manifest.clear_held();
  EXPECT_EQ(code(manifest), absl::StatusCode::kInvalidArgument);
  manifest = ManifestOf(200);
  manifest.mutable_chunks(3)->set_num_bytes(7);
  EXPECT_EQ(code(manifest), absl::StatusCode::kInvalidArgument);
  manifest = ManifestOf(200);
  manifest.set_policy_state("state");
  EXPECT_EQ(code(manifest), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::stored

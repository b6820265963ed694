// What is found again, by whom, and what is given up first. No model: entries are never read here
// (scheduler_test.cc does).
#include "services/executor/sequence_cache.h"

#include <numeric>

#include "common/metrics/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::executor {
namespace {

constexpr int64_t kHeads = 4;  // a block of 16 tokens takes so many pages
const memory::KvShape kShape{.num_layers = 2, .num_kv_heads = 2, .head_size = 8};

std::vector<int32_t> Tokens(int64_t size, int32_t salt = 0) {
  std::vector<int32_t> tokens(size);
  std::iota(tokens.begin(), tokens.end(), salt * 1000);
  return tokens;
}

class SequenceCacheTest : public ::testing::Test {
 protected:
  SequenceCacheTest() {
    pool_ = *memory::KvPool::Create({.head_size = 8, .budget_bytes = 400 * 16 * 8 * 2 * 4});
    Limit(400);
  }

  void Limit(int64_t max_pages) {
    cache_ = std::make_unique<SequenceCache>(pool_.get(), max_pages, &metrics_);
  }

  CachedSequence Sequence(
      const std::vector<int32_t>& tokens, const std::string& tenant = "t",
      const std::string& session = "",
      std::shared_ptr<const memory::MemoryPolicy> policy = memory::FullPolicy()) {
    memory::KvSequence memory(pool_.get(), kShape, std::move(policy));
    EXPECT_TRUE(memory.Reserve(static_cast<int64_t>(tokens.size())).ok());
    memory.Advance(static_cast<int64_t>(tokens.size()));
    EXPECT_TRUE(memory.Forget().ok());
    return {tenant, session, tokens, std::move(memory), std::nullopt};
  }

  // Tokens that another request of the tenant finds; -1: none.
  int64_t Shared(const std::vector<int32_t>& tokens, const std::string& tenant = "t",
                 int64_t max_tokens = 1000) {
    const auto found = cache_->Share(tenant, *memory::FullPolicy(), tokens, max_tokens);
    return found.has_value() ? found->num_tokens() : -1;
  }

  metrics::Registry registry_;
  ExecutorMetrics metrics_{registry_};
  std::unique_ptr<memory::KvPool> pool_;
  std::unique_ptr<SequenceCache> cache_;
};

TEST_F(SequenceCacheTest, TheLongestCommonBeginningIsShared) {
  cache_->Insert(Sequence(Tokens(40)));
  std::vector<int32_t> longer = Tokens(90);
  longer[70] = 7;
  cache_->Insert(Sequence(longer));
  EXPECT_EQ(Shared(Tokens(90)), 70);
  EXPECT_EQ(Shared(Tokens(90), "t", 33), 33);
  EXPECT_EQ(Shared(Tokens(20)), 20);
  EXPECT_EQ(Shared(Tokens(15)), -1) << "shorter than a block";
  EXPECT_EQ(Shared(Tokens(90, 1)), -1);
  std::vector<int32_t> early = Tokens(90);
  early[3] = 7;
  EXPECT_EQ(Shared(early), -1);
}

TEST_F(SequenceCacheTest, CachedPagesAreIdleUntilTheyAreShared) {
  cache_->Insert(Sequence(Tokens(40)));
  EXPECT_EQ(pool_->used_pages(), 0);
  EXPECT_EQ(pool_->idle_pages(), 3 * kHeads);
  {
    const auto fork = cache_->Share("t", *memory::FullPolicy(), Tokens(40), 20);
    EXPECT_EQ(pool_->used_pages(), 2 * kHeads);
    EXPECT_EQ(pool_->idle_pages(), kHeads);
    EXPECT_TRUE(cache_->EvictOldest());
    EXPECT_EQ(pool_->used_pages(), 2 * kHeads) << "a running sequence keeps what it shares";
    EXPECT_EQ(pool_->idle_pages(), 0);
  }
  EXPECT_EQ(pool_->free_pages(), pool_->num_pages());
  EXPECT_FALSE(cache_->EvictOldest());
}

TEST_F(SequenceCacheTest, NothingIsFoundByAnotherTenantOrPolicy) {
  cache_->Insert(Sequence(Tokens(64)));
  cache_->Insert(Sequence(Tokens(64, 1), "t", "s"));
  EXPECT_EQ(Shared(Tokens(64), "u"), -1);
  EXPECT_EQ(Shared(Tokens(64), ""), -1);
  EXPECT_EQ(Shared(Tokens(64, 1), "u"), -1);
  EXPECT_EQ(Shared(Tokens(64, 1), "t"), 64) << "a fork of a session has its tenant";
  const auto window = *memory::WindowPolicy(4, 1000);
  EXPECT_FALSE(cache_->Share("t", *window, Tokens(64), 64).has_value());
  EXPECT_FALSE(cache_->TakeSession("u", "s", {memory::FullPolicy()}, Tokens(64, 1), 64));
  EXPECT_FALSE(cache_->TakeSession("t", "s2", {memory::FullPolicy()}, Tokens(64, 1), 64));
  cache_->Insert(Sequence(Tokens(64, 1), "t", "s", window));
  EXPECT_FALSE(cache_->TakeSession("t", "s", {memory::FullPolicy()}, Tokens(64, 1), 64));
  cache_->Insert(Sequence(Tokens(64), ""));
  EXPECT_EQ(cache_->num_entries(), 1);
}

TEST_F(SequenceCacheTest, ASessionTakesItsOwnMemoryBackCutToWhatItStillBeginsWith) {
  cache_->Insert(Sequence(Tokens(50), "t", "s"));
  std::vector<int32_t> changed = Tokens(60);
  changed[41] = 7;
  auto taken = cache_->TakeSession("t", "s", {memory::FullPolicy()}, changed, 59);
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->memory.num_tokens(), 41);
  EXPECT_EQ(taken->tokens, Tokens(41));
  EXPECT_EQ(pool_->used_pages(), 3 * kHeads);
  EXPECT_EQ(cache_->num_entries(), 0);
  cache_->Insert(*std::move(taken));
  cache_->Insert(Sequence(Tokens(20), "t", "s"));
  EXPECT_EQ(cache_->num_entries(), 1) << "one memory a session";
  EXPECT_EQ(pool_->idle_pages(), 2 * kHeads);
}

TEST_F(SequenceCacheTest, ASessionsMemoryIsTightenedToWhatIsAskedFor) {
  const auto window = *memory::WindowPolicy(4, 20);
  cache_->Insert(Sequence(Tokens(100), "t", "s"));
  // Cut first: entries 61 to 80 are the latest of what is left.
  auto taken = cache_->TakeSession("t", "s", {window}, Tokens(120), 80);
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->memory.num_tokens(), 80);
  EXPECT_EQ(taken->memory.policy().Describe(), window->Describe());
  EXPECT_TRUE(taken->memory.IsResident(0, 0, 61, 80));
  EXPECT_FALSE(taken->memory.IsResident(0, 0, 16, 17));
  EXPECT_EQ(pool_->used_pages(), window->EstimateResidentPages(kShape, 80));
  // The other way only where the session is elastic.
  cache_->Insert(*std::move(taken));
  taken =
      cache_->TakeSession("t", "s", {memory::FullPolicy(), /*is_elastic=*/true}, Tokens(120), 119);
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->memory.policy().Describe(), window->Describe());
  cache_->Insert(*std::move(taken));
  EXPECT_FALSE(cache_->TakeSession("t", "s", {memory::FullPolicy()}, Tokens(120), 119));
}

TEST_F(SequenceCacheTest, AWindowIsTakenBackWhereItEndsAndGivenUpWhereItCannotBeCut) {
  const auto window = *memory::WindowPolicy(4, 20);
  cache_->Insert(Sequence(Tokens(100), "t", "s", window));
  auto taken = cache_->TakeSession("t", "s", {window}, Tokens(130), 129);
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->memory.num_tokens(), 100);
  cache_->Insert(*std::move(taken));
  EXPECT_FALSE(cache_->TakeSession("t", "s", {window}, Tokens(50), 49).has_value());
  EXPECT_EQ(pool_->free_pages(), pool_->num_pages());
  cache_->Insert(Sequence(Tokens(100), "t", "", window));
  EXPECT_EQ(cache_->num_entries(), 0) << "a stateless window can't be shared";
}

TEST_F(SequenceCacheTest, AContinuationTakesThePlaceOfWhatItContinues) {
  cache_->Insert(Sequence(Tokens(40)));
  cache_->Insert(Sequence(Tokens(60)));
  EXPECT_EQ(cache_->num_entries(), 1);
  cache_->Insert(Sequence(Tokens(33)));
  EXPECT_EQ(cache_->num_entries(), 1);
  EXPECT_EQ(Shared(Tokens(60)), 60);
  cache_->Insert(Sequence(Tokens(70), "t", "s"));
  EXPECT_EQ(cache_->num_entries(), 1);
  cache_->Insert(Sequence(Tokens(80), "t", "s2"));
  EXPECT_EQ(cache_->num_entries(), 2) << "sessions keep their own";
  cache_->Insert(Sequence(Tokens(40), "u"));
  EXPECT_EQ(cache_->num_entries(), 3);
}

TEST_F(SequenceCacheTest, TheOneUsedLongestAgoGoesFirst) {
  Limit(3 * kHeads * 2);
  cache_->Insert(Sequence(Tokens(32, 1)));
  cache_->Insert(Sequence(Tokens(32, 2)));
  cache_->Insert(Sequence(Tokens(32, 3)));
  EXPECT_EQ(Shared(Tokens(32, 1)), 32);
  cache_->Insert(Sequence(Tokens(32, 4)));
  EXPECT_EQ(cache_->num_entries(), 3);
  EXPECT_EQ(Shared(Tokens(32, 2)), -1);
  EXPECT_EQ(Shared(Tokens(32, 1)), 32);
  EXPECT_EQ(metrics_.prefix_cache_evictions.Value(), 1);
  Limit(0);
  cache_->Insert(Sequence(Tokens(32, 1)));
  EXPECT_EQ(cache_->num_entries(), 0);
}

TEST_F(SequenceCacheTest, ForgettingATenantOrASessionLeavesTheOthers) {
  cache_->Insert(Sequence(Tokens(32, 1)));
  cache_->Insert(Sequence(Tokens(32, 2), "t", "s"));
  cache_->Insert(Sequence(Tokens(32, 3), "t", "s2"));
  cache_->Insert(Sequence(Tokens(32, 1), "u"));
  cache_->Forget("t", "s");
  EXPECT_EQ(Shared(Tokens(32, 2)), -1);
  EXPECT_EQ(Shared(Tokens(32, 3)), 32);
  cache_->Forget("t", "");
  EXPECT_EQ(Shared(Tokens(32, 1)), -1);
  EXPECT_EQ(Shared(Tokens(32, 3)), -1);
  EXPECT_EQ(Shared(Tokens(32, 1), "u"), 32);
  cache_->Clear();
  EXPECT_EQ(pool_->free_pages(), pool_->num_pages());
}

}  // namespace
}  // namespace mneme::executor

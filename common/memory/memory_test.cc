// Pages, sequences, tables and policies without a model: entries are written by the tests.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_shape.h"
#include "common/memory/kv_tables.h"
#include "common/memory/memory_policy.h"
#include "common/memory/policy_choice.h"
#include "common/status/annotate.h"
#include "kernels/paged_attention.h"

namespace mneme::memory {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHeadSize = 8;
const KvShape kShape{.num_layers = 2, .num_kv_heads = 3, .head_size = kHeadSize};
constexpr int64_t kHeads = 6;  // of all layers

class MemoryTest : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  MemoryTest() { MakePool(200); }

  void MakePool(int64_t num_pages) {
    const int64_t page_bytes =
        kernels::PageElements(kHeadSize) * static_cast<int64_t>(c10::elementSize(GetParam()));
    pool_ = *KvPool::Create({.head_size = kHeadSize,
                             .dtype = GetParam(),
                             .budget_bytes = num_pages * page_bytes + page_bytes / 2});
    tables_ = *KvTables::Create(kShape, at::kCPU, /*num_slots=*/1, /*num_pages=*/1);
  }

  KvSequence NewSequence(std::shared_ptr<const MemoryPolicy> policy = FullPolicy(),
                         const KvShape& shape = kShape) {
    return KvSequence(pool_.get(), shape, std::move(policy));
  }

  // Adds `count` entries whose keys and values tell token, layer and head.
  void Append(KvSequence& sequence, int64_t count) {
    ASSERT_TRUE(sequence.Attach(*tables_).ok());
    ASSERT_TRUE(sequence.Reserve(count).ok());
    const int64_t begin = sequence.num_tokens();
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      at::Tensor k = at::empty({count, kShape.num_kv_heads, kHeadSize});
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
          k[t][head].copy_(at::arange(kHeadSize).to(at::kFloat) + KeyOf(begin + t, layer, head));
        }
      }
      kernels::AttentionBatch batch{.seq_slot = at::full({1}, sequence.slot(), at::kInt),
                                    .query_start = at::arange(0, 2 * count, count, at::kInt),
                                    .page_table = tables_->page_table().select(1, layer),
                                    .lengths = tables_->lengths().select(1, layer)};
      kernels::KvWrite(k, -k, batch, pool_->tensor());
    }
    sequence.Advance(count);
  }

  // Small whole numbers, exact in bfloat16.
  static float KeyOf(int64_t token, int64_t layer, int64_t head) {
    return static_cast<float>((token * 7 + layer * 3 + head) % 101);
  }

  // Checks that the entries `indices` of a head are those of `tokens`.
  void ExpectTokens(const KvSequence& sequence, int64_t layer, int64_t head,
                    const std::vector<int64_t>& indices, const std::vector<int64_t>& tokens) {
    const auto read = sequence.Read(layer, head, indices);
    ASSERT_TRUE(read.ok()) << read.status();
    for (size_t i = 0; i < indices.size(); ++i) {
      const at::Tensor expected =
          at::arange(kHeadSize).to(at::kFloat) + KeyOf(tokens[i], layer, head);
      EXPECT_TRUE(at::equal(read->first[static_cast<int64_t>(i)].to(at::kFloat), expected))
          << "key of entry " << indices[i] << ", layer " << layer << ", head " << head;
      EXPECT_TRUE(at::equal(read->second[static_cast<int64_t>(i)].to(at::kFloat), -expected))
          << "value of entry " << indices[i];
    }
  }

  void ExpectAllTokens(const KvSequence& sequence) {
    std::vector<int64_t> all(static_cast<size_t>(sequence.num_tokens()));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
        ASSERT_EQ(sequence.length(layer, head), sequence.num_tokens());
        ExpectTokens(sequence, layer, head, all, all);
      }
    }
  }

  // Checks that the tables show what the sequence has.
  void ExpectTablesMatch(const KvSequence& sequence) {
    const at::Tensor pages = tables_->page_table()[sequence.slot()];
    for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
      for (int64_t head = 0; head < kShape.num_kv_heads; ++head) {
        const int64_t length = sequence.length(layer, head);
        EXPECT_EQ(tables_->lengths()[sequence.slot()][layer][head].item<int32_t>(), length);
        for (int64_t page = 0; page * 16 < length; ++page) {
          const int64_t end = std::min<int64_t>(page * 16 + 16, length);
          EXPECT_EQ(pages[layer][head][page].item<int32_t>() >= 0,
                    sequence.IsResident(layer, head, page * 16, end));
        }
      }
    }
  }

  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<KvTables> tables_;
};

TEST_P(MemoryTest, PagesOfIdleSequencesAreIdleUnlessSomebodyElseUsesThem) {
  KvSequence sequence = NewSequence();
  Append(sequence, 40);
  sequence.SetIdle(true);
  EXPECT_FALSE(sequence.attached());
  EXPECT_EQ(pool_->used_pages(), 0);
  EXPECT_EQ(pool_->idle_pages(), 3 * kHeads);
  {
    KvSequence fork = sequence.Fork();
    ASSERT_TRUE(fork.Truncate(20).ok());
    EXPECT_EQ(pool_->used_pages(), 2 * kHeads);
    EXPECT_EQ(pool_->idle_pages(), kHeads);
    Append(fork, 1);
    EXPECT_EQ(pool_->used_pages(), 2 * kHeads) << "one shared, one copied";
    EXPECT_EQ(pool_->idle_pages(), 2 * kHeads);
    EXPECT_EQ(pool_->free_pages(), pool_->num_pages() - 4 * kHeads);
    ExpectAllTokens(fork);
  }
  EXPECT_EQ(pool_->idle_pages(), 3 * kHeads);
  sequence.SetIdle(false);
  EXPECT_EQ(pool_->used_pages(), 3 * kHeads);
  ExpectAllTokens(sequence);
}

TEST_P(MemoryTest, ARestoredSequenceHasThePagesOfItsRuns) {
  std::vector<std::vector<EntryRun>> held(kHeads, {{0, 100}});
  held[1] = {{0, 16}, {64, 100}};
  KvSequence sequence = NewSequence();
  ASSERT_TRUE(sequence.Restore(100, held).ok());
  EXPECT_EQ(sequence.num_tokens(), 100);
  EXPECT_EQ(sequence.num_pages(), 5 * 7 + 4);
  EXPECT_EQ(pool_->used_pages(), 5 * 7 + 4);
  EXPECT_TRUE(sequence.IsResident(0, 0, 0, 100));
  EXPECT_FALSE(sequence.IsResident(0, 1, 16, 64));
  EXPECT_EQ(sequence.page_id(0, 1, 2), -1);
  Append(sequence, 5);
  EXPECT_EQ(sequence.length(1, 2), 105);
  EXPECT_EQ(sequence.Restore(100, held).code(), absl::StatusCode::kFailedPrecondition);
  for (const std::vector<EntryRun>& wrong : std::vector<std::vector<EntryRun>>{
           {{0, 101}}, {{5, 5}}, {{20, 30}, {10, 15}}, {{-1, 4}}, {{0, 20}, {19, 30}}}) {
    KvSequence empty = NewSequence();
    held[3] = wrong;
    EXPECT_EQ(empty.Restore(100, held).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(empty.num_pages(), 0);
  }
  KvSequence large = NewSequence();
  EXPECT_EQ(large.Restore(10000, std::vector<std::vector<EntryRun>>(kHeads, {{0, 10000}})).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(large.num_tokens(), 0);
}

TEST_P(MemoryTest, EntriesAreReadBackAcrossPages) {
  KvSequence sequence = NewSequence();
  for (const int64_t count : {1, 15, 1, 40, 3}) Append(sequence, count);
  EXPECT_EQ(sequence.num_tokens(), 60);
  EXPECT_EQ(sequence.num_pages(), 4 * kHeads);
  EXPECT_EQ(sequence.resident_entries(), 60 * kHeads);
  EXPECT_EQ(sequence.resident_bytes(), 4 * kHeads * pool_->page_bytes());
  ExpectAllTokens(sequence);
  ExpectTablesMatch(sequence);
}

TEST_P(MemoryTest, BudgetIsWholePagesAndHandlesGiveThemBack) {
  EXPECT_EQ(pool_->num_pages(), 200);
  {
    KvSequence sequence = NewSequence();
    Append(sequence, 33);
    EXPECT_EQ(pool_->used_pages(), 3 * kHeads);
    KvSequence moved = std::move(sequence);
    EXPECT_EQ(pool_->used_pages(), 3 * kHeads);
    EXPECT_EQ(tables_->used_slots(), 1);
  }
  EXPECT_EQ(pool_->used_pages(), 0);
  EXPECT_EQ(pool_->peak_used_pages(), 3 * kHeads);
  EXPECT_EQ(tables_->used_slots(), 0);
}

TEST_P(MemoryTest, ReserveBeyondThePoolChangesNothing) {
  MakePool(2 * kHeads + 5);
  KvSequence sequence = NewSequence();
  Append(sequence, 20);
  const absl::Status status = sequence.Reserve(13);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("needed 6, free 5 of 17"));
  EXPECT_EQ(pool_->used_pages(), 2 * kHeads);
  EXPECT_EQ(sequence.reserved_tokens(), 0);
  ExpectAllTokens(sequence);
  Append(sequence, 12);  // the room that is left in the last pages
  ExpectAllTokens(sequence);
}

TEST_P(MemoryTest, FailedCopyOfSharedPagesChangesNothing) {
  MakePool(2 * kHeads + 5);
  KvSequence sequence = NewSequence();
  Append(sequence, 20);
  KvSequence fork = sequence.Fork();
  EXPECT_EQ(fork.Reserve(1).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool_->used_pages(), 2 * kHeads);
  ExpectAllTokens(sequence);
  ExpectAllTokens(fork);
}

TEST_P(MemoryTest, ReservedRoomIsGivenBack) {
  KvSequence sequence = NewSequence();
  Append(sequence, 10);
  ASSERT_TRUE(sequence.Reserve(100).ok());
  EXPECT_EQ(pool_->used_pages(), 7 * kHeads);
  sequence.ReleaseReserved();
  EXPECT_EQ(pool_->used_pages(), kHeads);
  EXPECT_EQ(sequence.reserved_tokens(), 0);
  Append(sequence, 10);
  ExpectAllTokens(sequence);
  EXPECT_EQ(sequence.peak_bytes(), 7 * kHeads * pool_->page_bytes());
}

TEST_P(MemoryTest, ForkSharesUntilOneWrites) {
  KvSequence sequence = NewSequence();
  Append(sequence, 40);
  const int64_t used = pool_->used_pages();
  KvSequence fork = sequence.Fork();
  EXPECT_EQ(pool_->used_pages(), used);
  Append(fork, 1);  // copies the partly filled page of each head
  EXPECT_EQ(pool_->used_pages(), used + kHeads);
  Append(sequence, 1);  // alone in its pages again: nothing to copy
  EXPECT_EQ(pool_->used_pages(), used + kHeads);
  // Both wrote token 40; make them differ to see that neither writes into the other.
  ASSERT_TRUE(fork.Truncate(35).ok());
  Append(fork, 1);
  ExpectAllTokens(fork);
  ExpectAllTokens(sequence);
  ExpectTablesMatch(fork);
  ExpectTablesMatch(sequence);
}

TEST_P(MemoryTest, ForkOfASequenceWithReservedRoomDoesNotWriteIntoSharedPages) {
  KvSequence sequence = NewSequence();
  Append(sequence, 5);
  ASSERT_TRUE(sequence.Reserve(4).ok());
  KvSequence fork = sequence.Fork();
  EXPECT_EQ(sequence.reserved_tokens(), 0);
  ASSERT_TRUE(sequence.Reserve(4).ok());
  EXPECT_EQ(pool_->used_pages(), 2 * kHeads);
}

TEST_P(MemoryTest, TruncateThenAppendGivesTheNewEntries) {
  KvSequence sequence = NewSequence();
  Append(sequence, 50);
  ASSERT_TRUE(sequence.Truncate(17).ok());
  EXPECT_EQ(pool_->used_pages(), 2 * kHeads);
  ExpectAllTokens(sequence);
  Append(sequence, 20);
  ExpectAllTokens(sequence);
  ExpectTablesMatch(sequence);
  ASSERT_TRUE(sequence.Truncate(0).ok());
  EXPECT_EQ(pool_->used_pages(), 0);
  EXPECT_EQ(sequence.Truncate(1).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(MemoryTest, TruncateOfAForkLeavesTheOriginal) {
  KvSequence sequence = NewSequence();
  Append(sequence, 40);
  KvSequence fork = sequence.Fork();
  ASSERT_TRUE(fork.Truncate(33).ok());
  Append(fork, 9);
  ExpectAllTokens(fork);
  ExpectAllTokens(sequence);
}

TEST_P(MemoryTest, KeptEntriesMoveTogetherPerHead) {
  KvSequence sequence = NewSequence();
  Append(sequence, 60);
  std::vector<int64_t> odd;
  for (int64_t i = 1; i < 60; i += 2) odd.push_back(i);
  const std::vector<int64_t> few = {0, 17, 59};
  ASSERT_TRUE(sequence
                  .Apply({.kept = {{.layer = 0, .head = 1, .indices = odd},
                                   {.layer = 1, .head = 2, .indices = few},
                                   {.layer = 1, .head = 0, .indices = {}}}})
                  .ok());
  EXPECT_EQ(sequence.length(0, 1), 30);
  EXPECT_EQ(sequence.length(1, 2), 3);
  EXPECT_EQ(sequence.length(1, 0), 0);
  EXPECT_EQ(sequence.length(0, 0), 60);
  EXPECT_EQ(sequence.num_pages(), 3 * 4 + 2 + 1 + 0);
  EXPECT_EQ(sequence.resident_entries(), 3 * 60 + 30 + 3);
  std::vector<int64_t> first30(30);
  std::iota(first30.begin(), first30.end(), 0);
  ExpectTokens(sequence, 0, 1, first30, odd);
  ExpectTokens(sequence, 1, 2, {0, 1, 2}, few);
  ExpectTablesMatch(sequence);
  // New entries go behind what is left; the position counter goes on.
  Append(sequence, 2);
  EXPECT_EQ(sequence.num_tokens(), 62);
  ExpectTokens(sequence, 0, 1, {29, 30, 31}, {59, 60, 61});
  ExpectTokens(sequence, 1, 2, {2, 3, 4}, {59, 60, 61});
  ExpectTokens(sequence, 1, 0, {0, 1}, {60, 61});
  ExpectTokens(sequence, 0, 2, {60, 61}, {60, 61});
  EXPECT_EQ(sequence.Truncate(10).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(MemoryTest, CompactingAForkLeavesTheOriginal) {
  KvSequence sequence = NewSequence();
  Append(sequence, 40);
  KvSequence fork = sequence.Fork();
  ASSERT_TRUE(fork.Apply({.kept = {{.layer = 0, .head = 0, .indices = {3, 5, 38}}}}).ok());
  ExpectTokens(fork, 0, 0, {0, 1, 2}, {3, 5, 38});
  ExpectAllTokens(sequence);
  EXPECT_EQ(pool_->used_pages(), 3 * kHeads + 1);
}

TEST_P(MemoryTest, CompactingNeedsNoFreePagesWhereNothingIsShared) {
  MakePool(3 * kHeads);
  KvSequence sequence = NewSequence();
  Append(sequence, 48);
  EXPECT_EQ(pool_->free_pages(), 0);
  ASSERT_TRUE(sequence.Apply({.kept = {{.layer = 1, .head = 1, .indices = {1, 2, 47}}}}).ok());
  ExpectTokens(sequence, 1, 1, {0, 1, 2}, {1, 2, 47});
  EXPECT_EQ(pool_->free_pages(), 2);
}

TEST_P(MemoryTest, WrongKeptEntriesAreRefused) {
  KvSequence sequence = NewSequence();
  Append(sequence, 20);
  for (const std::vector<int64_t>& indices :
       std::vector<std::vector<int64_t>>{{3, 3}, {4, 2}, {20}, {-1}}) {
    EXPECT_EQ(sequence.Apply({.kept = {{.layer = 0, .head = 0, .indices = indices}}}).code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(sequence.Apply({.kept = {{.layer = 2, .head = 0}}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(sequence.Apply({.kept = {{.layer = 0, .head = 0}, {.layer = 0, .head = 0}}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(sequence.Apply({.forgotten = {{.layer = 0, .begin = 0, .end = 21}}}).code(),
            absl::StatusCode::kInvalidArgument);
  ExpectAllTokens(sequence);
}

TEST_P(MemoryTest, WindowGivesPagesBackAndStaysBounded) {
  KvSequence sequence = NewSequence(*WindowPolicy(/*sinks=*/4, /*recent=*/20));
  const int64_t bound = sequence.policy().EstimatePeakPages(kShape, 1000, 7);
  for (int64_t step = 0; step < 100; ++step) {
    Append(sequence, 7);
    ASSERT_TRUE(sequence.Forget().ok());
    const int64_t length = sequence.num_tokens();
    // What the next query sees is there; and of the rest, no whole page.
    EXPECT_TRUE(sequence.IsResident(1, 2, 0, 4));
    EXPECT_TRUE(sequence.IsResident(1, 2, std::max<int64_t>(length - 19, 0), length));
    EXPECT_EQ(sequence.IsResident(1, 2, 16, 32), length >= 32 && length < 51);
    EXPECT_EQ(sequence.num_pages(), sequence.policy().EstimateResidentPages(kShape, length))
        << length;
    ExpectTablesMatch(sequence);
  }
  EXPECT_LE(sequence.peak_bytes(), bound * pool_->page_bytes());
  EXPECT_LE(bound, 6 * kHeads);
  ExpectTokens(sequence, 0, 0, {0, 3, 690, 699}, {0, 3, 690, 699});
  EXPECT_EQ(sequence.Read(0, 0, {100}).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(MemoryTest, EstimateOfPeakHoldsForAnyChunk) {
  for (const int64_t chunk : {1, 5, 16, 33, 64}) {
    for (const auto& [sinks, recent] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {4, 1}, {4, 12}, {16, 16}, {17, 31}, {0, 40}}) {
      KvSequence sequence = NewSequence(*WindowPolicy(sinks, recent));
      while (sequence.num_tokens() < 200) {
        Append(sequence, chunk);
        ASSERT_TRUE(sequence.Forget().ok());
        EXPECT_EQ(sequence.num_pages(),
                  sequence.policy().EstimateResidentPages(kShape, sequence.num_tokens()));
      }
      EXPECT_LE(sequence.peak_bytes() / pool_->page_bytes(),
                sequence.policy().EstimatePeakPages(kShape, sequence.num_tokens(), chunk))
          << "sinks " << sinks << ", recent " << recent << ", chunk " << chunk;
    }
  }
}

TEST_P(MemoryTest, WindowRewindsOnlyWhereItsEntriesAreLeft) {
  KvSequence sequence = NewSequence(*WindowPolicy(4, 20));
  Append(sequence, 100);
  ASSERT_TRUE(sequence.Forget().ok());
  // Entries from 80 on are there (81 are needed, 80 is in the same page).
  EXPECT_EQ(sequence.Truncate(90).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(sequence.num_tokens(), 100);
  ASSERT_TRUE(sequence.Truncate(99).ok());
  Append(sequence, 3);
  ExpectTokens(sequence, 0, 0, {2, 98, 101}, {2, 98, 101});
  ExpectTablesMatch(sequence);
}

TEST_P(MemoryTest, ATightenedSequenceHoldsItsFirstEntriesAndTheNewerHalf) {
  KvSequence sequence = NewSequence(FullPolicy());
  Append(sequence, 255);
  EXPECT_EQ(sequence.policy().Tighter(sequence), nullptr) << "too little would be left";
  Append(sequence, 65);
  const auto tighter = sequence.policy().Tighter(sequence);
  ASSERT_NE(tighter, nullptr);
  EXPECT_EQ(tighter->Describe(), "window(sinks=4,recent=160)");
  // Room that is reserved for the next step stays.
  ASSERT_TRUE(sequence.Reserve(3).ok());
  ASSERT_TRUE(sequence.Tighten(tighter).ok());
  EXPECT_EQ(sequence.policy().Describe(), tighter->Describe());
  EXPECT_EQ(sequence.reserved_tokens(), 3);
  sequence.ReleaseReserved();
  EXPECT_EQ(sequence.num_pages(), tighter->EstimateResidentPages(kShape, 320));
  ExpectTokens(sequence, 1, 2, {0, 3, 161, 319}, {0, 3, 161, 319});
  ExpectTablesMatch(sequence);
  // From now on it forgets as that window does, and can be tightened again.
  Append(sequence, 40);
  ASSERT_TRUE(sequence.Forget().ok());
  EXPECT_EQ(sequence.num_pages(), tighter->EstimateResidentPages(kShape, 360));
  EXPECT_EQ(tighter->Tighter(sequence), nullptr) << "80 are too few";
  EXPECT_EQ(sequence.Tighten(FullPolicy()).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(sequence.Tighten(*WindowPolicy(5, 10)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(sequence.Tighten(*WindowPolicy(0, 10)).ok());
  EXPECT_EQ(sequence.num_pages(), 2 * kHeads);
}

TEST_P(MemoryTest, ModelsWithSlidingWindowsOfTheirOwnAreNotTightened) {
  KvShape shape = kShape;
  shape.sliding_windows = {0, 10};
  KvSequence sequence = NewSequence(FullPolicy(), shape);
  Append(sequence, 320);
  EXPECT_EQ(sequence.policy().Tighter(sequence), nullptr);
}

TEST_P(MemoryTest, LayersWithSlidingWindowsForgetUnderTheFullPolicy) {
  KvShape shape = kShape;
  shape.sliding_windows = {0, 10};
  KvSequence sequence = NewSequence(FullPolicy(), shape);
  Append(sequence, 100);
  ASSERT_TRUE(sequence.Forget().ok());
  EXPECT_TRUE(sequence.IsResident(0, 0, 0, 100));
  EXPECT_FALSE(sequence.IsResident(1, 0, 0, 1));
  EXPECT_TRUE(sequence.IsResident(1, 0, 91, 100));
  EXPECT_EQ(sequence.num_pages(), 3 * 7 + 3 * 2);
  EXPECT_EQ(sequence.policy().EstimateResidentPages(shape, 100), 3 * 7 + 3 * 2);
}

TEST_P(MemoryTest, ForgottenRangesInAnyOrderGiveEveryPageBack) {
  KvSequence sequence = NewSequence();
  Append(sequence, 96);
  ASSERT_TRUE(sequence
                  .Apply({.forgotten = {{.layer = 0, .begin = 32, .end = 64},
                                        {.layer = 0, .begin = 0, .end = 16},
                                        {.layer = 0, .begin = 0, .end = 80}}})
                  .ok());
  EXPECT_EQ(sequence.num_pages(), 3 * 6 + 3 * 1);
  ExpectTablesMatch(sequence);
}

TEST_P(MemoryTest, StepWritesOnlyNewPagesIntoTheTables) {
  KvSequence sequence = NewSequence();
  Append(sequence, 16);
  const int64_t before = tables_->num_page_writes();
  for (int step = 0; step < 16; ++step) Append(sequence, 1);
  EXPECT_EQ(tables_->num_page_writes() - before, kHeads);
}

TEST_P(MemoryTest, TablesGrowWithSlotsAndPagesAndKeepWhatTheyHold) {
  std::vector<KvSequence> sequences;
  for (int64_t i = 0; i < 5; ++i) {
    sequences.push_back(NewSequence());
    Append(sequences.back(), 3 + 20 * i);
  }
  for (const KvSequence& sequence : sequences) {
    ExpectTablesMatch(sequence);
    ExpectAllTokens(sequence);
  }
  EXPECT_EQ(tables_->used_slots(), 5);
  sequences[1].Detach();
  KvSequence late = NewSequence();
  Append(late, 1);
  EXPECT_EQ(late.slot(), 1);
  ASSERT_TRUE(sequences[1].Attach(*tables_).ok());
  Append(sequences[1], 30);
  ExpectTablesMatch(sequences[1]);
  ExpectAllTokens(sequences[1]);
  ExpectTablesMatch(late);
}

TEST_P(MemoryTest, SlotOfAnEndedSequenceIsClean) {
  int32_t slot;
  {
    KvSequence sequence = NewSequence();
    Append(sequence, 40);
    slot = sequence.slot();
  }
  EXPECT_EQ(tables_->lengths()[slot].abs().sum().item<int64_t>(), 0);
  EXPECT_TRUE((tables_->page_table()[slot] == -1).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Types, MemoryTest, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(c10::toString(info.param)); });

TEST(KvPoolTest, RefusesWrongOptions) {
  EXPECT_EQ(
      KvPool::Create({.head_size = 8, .dtype = at::kHalf, .budget_bytes = 1 << 20}).status().code(),
      absl::StatusCode::kInvalidArgument);
  const auto small = KvPool::Create({.head_size = 64, .budget_bytes = 8191});
  EXPECT_EQ(small.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(small.status().message()), HasSubstr("page 8192 bytes"));
}

TEST(KvPoolTest, BudgetBeyondTheMachineIsResourceExhausted) {
  EXPECT_EQ(KvPool::Create({.head_size = 256, .budget_bytes = int64_t{1} << 60}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(MemoryPolicyTest, ParsesTheProto) {
  inference::v1::MemoryPolicy proto;
  EXPECT_EQ((*CreatePolicy(proto, {}))->Describe(), "full");
  proto.mutable_full();
  EXPECT_EQ((*CreatePolicy(proto, {}))->name(), "full");
  proto.mutable_window()->set_sinks(4);
  const auto without_recent = CreatePolicy(proto, {});
  EXPECT_EQ(without_recent.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status::PayloadOf(without_recent.status(), status::kFieldPayload),
            "memory_policy.window.recent");
  proto.mutable_window()->set_recent(1020);
  EXPECT_EQ((*CreatePolicy(proto, {}))->Describe(), "window(sinks=4,recent=1020)");
  proto.mutable_window()->set_sinks(-1);
  EXPECT_EQ(CreatePolicy(proto, {}).status().code(), absl::StatusCode::kInvalidArgument);
  proto.mutable_window()->set_sinks(0);
  proto.mutable_window()->set_recent(std::numeric_limits<int32_t>::max());
  EXPECT_EQ(CreatePolicy(proto, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MemoryPolicyTest, TighterOnesAreKnownByTheirText) {
  const auto full = FullPolicy();
  EXPECT_EQ(full->TighterOf("full")->Describe(), "full");
  EXPECT_EQ(full->TighterOf("window(sinks=4,recent=9)")->Describe(), "window(sinks=4,recent=9)");
  EXPECT_EQ(full->TighterOf("h2o(tokens=9)"), nullptr);
  const auto window = *WindowPolicy(4, 100);
  EXPECT_EQ(window->TighterOf("full"), nullptr);
  EXPECT_EQ(window->TighterOf("window(sinks=4,recent=101)"), nullptr);
  EXPECT_EQ(window->TighterOf("window(sinks=5,recent=100)"), nullptr);
  EXPECT_NE(window->TighterOf("window(sinks=0,recent=100)"), nullptr);
}

TEST(PolicyChoiceTest, ElasticGoesWithFullAndWindow) {
  inference::v1::MemoryPolicy proto;
  EXPECT_FALSE(CreatePolicyChoice(proto)->is_elastic);
  proto.set_elastic(true);
  EXPECT_TRUE(CreatePolicyChoice(proto)->is_elastic);
  proto.mutable_l2norm()->mutable_budget()->set_tokens(64);
  const auto refused = CreatePolicyChoice(proto);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status::PayloadOf(refused.status(), status::kFieldPayload), "memory_policy.elastic");
  proto.set_elastic(false);
  EXPECT_TRUE(CreatePolicyChoice(proto).ok());
}

TEST(PolicyChoiceTest, GuardsGoWithBudgets) {
  inference::v1::MemoryPolicy proto;
  const auto refused_field = [&] {
    const auto refused = CreatePolicyChoice(proto);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    return status::PayloadOf(refused.status(), status::kFieldPayload);
  };
  proto.mutable_window()->set_recent(64);
  proto.mutable_guard()->set_max_kl(0.1);
  EXPECT_EQ(refused_field(), "memory_policy.guard");
  proto.mutable_h2o()->mutable_budget()->set_tokens(64);
  EXPECT_EQ(CreatePolicyChoice(proto)->guard->probe_every, 256);
  proto.mutable_h2o()->set_interval(100);
  EXPECT_EQ(CreatePolicyChoice(proto)->guard->probe_every, 300);
  for (const double wrong : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    proto.mutable_guard()->set_max_kl(wrong);
    EXPECT_EQ(refused_field(), "memory_policy.guard.max_kl");
  }
  proto.mutable_guard()->set_max_kl(2);
  for (const int wrong : {-100, 1, 150}) {
    proto.mutable_guard()->set_probe_every(wrong);
    EXPECT_EQ(refused_field(), "memory_policy.guard.probe_every");
  }
  proto.mutable_guard()->set_probe_every(100);
  EXPECT_EQ(CreatePolicyChoice(proto)->guard->probe_every, 100);
}

TEST(PolicyChoiceTest, KnowsWhatItsPolicyMayHaveBecome) {
  const PolicyChoice elastic{.policy = FullPolicy(), .is_elastic = true};
  EXPECT_EQ(elastic.Become("window(sinks=4,recent=200)")->Describe(), "window(sinks=4,recent=200)");
  EXPECT_EQ(PolicyChoice{.policy = FullPolicy()}.Become("window(sinks=4,recent=200)"), nullptr);
  inference::v1::MemoryPolicy proto;
  proto.mutable_h2o()->mutable_budget()->set_tokens(64);
  proto.mutable_guard()->set_max_kl(1);
  PolicyChoice guarded = *CreatePolicyChoice(proto);
  const auto looser = guarded.policy->Looser()->Looser();
  EXPECT_EQ(looser->Describe(), "h2o(tokens=256,interval=128,recent=0)");
  EXPECT_EQ(guarded.Become(looser->Describe())->Describe(), looser->Describe());
  EXPECT_EQ(guarded.Become("h2o(tokens=96,interval=128,recent=0)"), nullptr);
  guarded.guard.reset();
  EXPECT_EQ(guarded.Become(looser->Describe()), nullptr);
}

TEST(MemoryPolicyTest, MaskOfALayerIsTheNarrower) {
  const AttentionMask window{.window = 100, .sinks = 4};
  EXPECT_EQ(MaskOfLayer({}, 0), (AttentionMask{}));
  EXPECT_EQ(MaskOfLayer({}, 50), (AttentionMask{.window = 50}));
  EXPECT_EQ(MaskOfLayer(window, 0), window);
  EXPECT_EQ(MaskOfLayer(window, 50), (AttentionMask{.window = 50, .sinks = 4}));
  EXPECT_EQ(MaskOfLayer(window, 500), window);
}

}  // namespace
}  // namespace mneme::memory

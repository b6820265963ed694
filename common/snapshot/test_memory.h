// Sequences with random entries, and their way through chunks and back, for tests.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/memory/kv_pool.h"
#include "common/memory/kv_sequence.h"
#include "common/snapshot/chunk.h"
#include "common/snapshot/encoding.h"
#include "common/snapshot/manifest.h"
#include "gtest/gtest.h"

namespace mneme::snapshot {

inline std::unique_ptr<memory::KvPool> MakePool(int64_t head_size, at::ScalarType dtype,
                                                int64_t num_pages) {
  const int64_t page_bytes = 2 * 16 * head_size * static_cast<int64_t>(c10::elementSize(dtype));
  return *memory::KvPool::Create(
      {.head_size = head_size, .dtype = dtype, .budget_bytes = num_pages * page_bytes});
}

// Fills the whole pool, so that whatever is read or shared wrongly differs.
inline void FillWithNoise(memory::KvPool& pool, uint64_t seed) {
  at::Tensor tensor = pool.tensor();
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  at::Tensor numbers = at::empty(tensor.sizes(), at::kFloat);
  float* const data = numbers.data_ptr<float>();
  for (int64_t i = 0; i < numbers.numel(); ++i) data[i] = normal(random);
  tensor.copy_(numbers);
}

inline void Grow(memory::KvSequence& sequence, int64_t num_tokens) {
  ASSERT_TRUE(sequence.Reserve(num_tokens).ok());
  sequence.Advance(num_tokens);
  ASSERT_TRUE(sequence.Forget().ok());
}

inline std::vector<int32_t> SomeTokens(int64_t size) {
  std::vector<int32_t> tokens(size);
  std::iota(tokens.begin(), tokens.end(), 5);
  return tokens;
}

// What a store keeps of a memory.
struct Stored {
  v1::Manifest manifest;
  std::vector<std::string> payloads;  // one per chunk of `chunks`
  std::vector<v1::Chunk> chunks;

  const std::string& payload(const v1::Chunk& chunk) const {
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (chunks[i].digest() == chunk.digest()) return payloads[i];
    }
    static const std::string none;
    return none;
  }
};

// Adds the entries [first, end) as chunks.
inline void Store(const memory::KvSequence& sequence, int64_t first, int64_t end,
                  v1::Encoding encoding, Stored* stored) {
  const ChunkPlan plan(sequence.shape(), encoding);
  for (int64_t at = first; at < end;) {
    const int64_t next = std::min(plan.FullEnd(at), end);
    for (const ChunkRange& range : plan.Ranges(at, next)) {
      auto chunk = ExportChunk(sequence, range, encoding);
      ASSERT_TRUE(chunk.ok()) << chunk.status();
      if (!chunk->has_value()) continue;
      EXPECT_LE((*chunk)->payload.size(), static_cast<size_t>(kMaxChunkBytes));
      const std::string number = std::to_string(stored->chunks.size());
      (*chunk)->chunk.set_digest(std::string(16 - number.size(), 'd') + number);
      stored->chunks.push_back((*chunk)->chunk);
      stored->payloads.push_back(std::move((*chunk)->payload));
    }
    at = next;
  }
}

inline absl::Status Restore(const Stored& stored, memory::KvSequence* sequence) {
  auto held = HeldOf(stored.manifest, sequence->shape());
  if (!held.ok()) return held.status();
  const int64_t num_tokens = static_cast<int64_t>(stored.manifest.num_tokens());
  if (auto status = sequence->Restore(num_tokens, *held); !status.ok()) return status;
  for (const v1::Chunk& chunk : stored.manifest.chunks()) {
    if (auto status = ImportChunk(chunk, stored.payload(chunk), sequence); !status.ok()) {
      return status;
    }
  }
  return sequence->RestoreState(stored.manifest.policy_state());
}

// Calls body(layer, head, indices of all entries that the sequence holds).
template <typename Body>
void ForEachHead(const memory::KvSequence& sequence, Body&& body) {
  for (int64_t layer = 0; layer < sequence.shape().num_layers; ++layer) {
    for (int64_t head = 0; head < sequence.shape().num_kv_heads; ++head) {
      std::vector<int64_t> indices;
      for (const memory::EntryRun& run :
           HeldRuns(sequence, layer, head, 0, sequence.num_tokens())) {
        const int64_t begin = sequence.IndexOf(layer, head, run.begin);
        for (int64_t i = 0; i < run.end - run.begin; ++i) indices.push_back(begin + i);
      }
      body(layer, head, indices);
    }
  }
}

// Bit for bit.
inline void ExpectSameMemory(const memory::KvSequence& actual, const memory::KvSequence& expected) {
  ASSERT_EQ(actual.num_tokens(), expected.num_tokens());
  EXPECT_EQ(actual.num_pages(), expected.num_pages());
  const auto bits = [](const at::Tensor& numbers) {
    return numbers.view(numbers.element_size() == 4 ? at::kInt : at::kShort);
  };
  ForEachHead(expected, [&](int64_t layer, int64_t head, const std::vector<int64_t>& indices) {
    const auto want = expected.Read(layer, head, indices);
    const auto have = actual.Read(layer, head, indices);
    ASSERT_TRUE(want.ok() && have.ok()) << have.status();
    EXPECT_TRUE(at::equal(bits(have->first), bits(want->first))) << layer << " " << head;
    EXPECT_TRUE(at::equal(bits(have->second), bits(want->second))) << layer << " " << head;
  });
}

}  // namespace mneme::snapshot

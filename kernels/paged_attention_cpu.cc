// Divides a step's attention among the threads; the arithmetic is in paged_attention_tile.h.
#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cpu_features.h"
#include "kernels/paged_attention.h"
#include "kernels/paged_attention_kernels.h"
#include "kernels/parallel.h"
#include "kernels/scratch.h"

namespace mneme::kernels {
namespace {

// Raw views of the batch tensors: element access through at::Tensor costs too much here.
struct Batch {
  Batch(const at::Tensor& seq_slot, const at::Tensor& query_start, const at::Tensor& page_table,
        const at::Tensor& lengths, int64_t rows, int64_t num_pages, const char* op)
      : num_sequences(seq_slot.size(0)),
        max_pages(page_table.size(2)),
        slot(seq_slot.const_data_ptr<int32_t>()),
        start(query_start.const_data_ptr<int32_t>()),
        table(page_table.const_data_ptr<int32_t>()),
        length(lengths.const_data_ptr<int32_t>()),
        table_strides{page_table.stride(0), page_table.stride(1)},
        length_strides{lengths.stride(0), lengths.stride(1)} {
    TORCH_CHECK_VALUE(start[0] == 0 && start[num_sequences] == rows, op,
                      ": query_start must go from 0 to the row count ", rows);
    for (int64_t s = 0; s < num_sequences; ++s) {
      TORCH_CHECK_VALUE(start[s] <= start[s + 1], op, ": query_start decreases at sequence ", s);
      TORCH_CHECK_INDEX(slot[s] >= 0 && slot[s] < page_table.size(0), op, ": slot ", slot[s],
                        " is not one of ", page_table.size(0));
      if (start[s] == start[s + 1]) continue;
      for (int64_t h = 0; h < page_table.size(1); ++h) {
        const int64_t first = Length(s, h);
        const int64_t end = first + start[s + 1] - start[s];
        TORCH_CHECK_INDEX(first >= 0 && end <= max_pages * kPageEntries, op, ": sequence ", s,
                          " needs ", end, " entries, its page table has room for ",
                          max_pages * kPageEntries);
        const int32_t* pages = Pages(s, h);
        for (int64_t p = first / kPageEntries; p * kPageEntries < end; ++p) {
          TORCH_CHECK_INDEX(pages[p] >= 0 && pages[p] < num_pages, op, ": sequence ", s,
                            " has no page for its new entries at ", p * kPageEntries);
        }
      }
    }
  }

  int64_t Length(int64_t s, int64_t head) const {
    return length[slot[s] * length_strides[0] + head * length_strides[1]];
  }
  const int32_t* Pages(int64_t s, int64_t head) const {
    return table + slot[s] * table_strides[0] + head * table_strides[1];
  }

  int64_t num_sequences;
  int64_t max_pages;
  const int32_t* slot;
  const int32_t* start;
  const int32_t* table;
  const int32_t* length;
  int64_t table_strides[2];
  int64_t length_strides[2];
};

// Rows of one (sequence, head) that a task writes.
constexpr int64_t kWriteRowsPerTask = 32;
// With fewer tiles than this per thread, the splits of a tile are shared out, too.
constexpr int64_t kTilesPerThread = 2;
// Partial results may take this much memory, no more.
constexpr int64_t kMaxPartBytes = int64_t{64} << 20;

const AttentionKernels& Kernels(int64_t head_size) {
  const Variant variant = CurrentVariant();
  if (variant >= Variant::kAvx512Vnni && head_size % Avx512AttentionKernels().lanes == 0) {
    return Avx512AttentionKernels();
  }
  return variant == Variant::kPortable ? PortableAttentionKernels() : Avx2AttentionKernels();
}

template <typename T>
void WriteRows(const at::Tensor& k, const at::Tensor& v, const Batch& batch, int64_t s, int64_t h,
               int64_t begin, int64_t end, T* pool) {
  const int64_t width = k.size(2);
  const int64_t first = batch.Length(s, h) - batch.start[s];
  const int32_t* pages = batch.Pages(s, h);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t j = first + r;
    const int64_t e = j % kPageEntries;
    T* page = pool + pages[j / kPageEntries] * PageElements(width);
    const float* key = k.const_data_ptr<float>() + r * k.stride(0) + h * k.stride(1);
    const float* value = v.const_data_ptr<float>() + r * v.stride(0) + h * v.stride(1);
    for (int64_t d = 0; d < width; ++d) page[d * kPageEntries + e] = static_cast<T>(key[d]);
    T* values = page + (kPageEntries + e) * width;
    for (int64_t d = 0; d < width; ++d) values[d] = static_cast<T>(value[d]);
  }
}

template <typename T>
void WriteAll(const at::Tensor& k, const at::Tensor& v, const Batch& batch, T* pool) {
  const int64_t heads = k.size(1);
  int64_t longest = 0;
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    longest = std::max<int64_t>(longest, batch.start[s + 1] - batch.start[s]);
  }
  if (longest == 1) {
    // A few hundred floats per sequence: not worth handing over.
    for (int64_t s = 0; s < batch.num_sequences; ++s) {
      for (int64_t h = 0; h < heads; ++h) {
        WriteRows(k, v, batch, s, h, batch.start[s], batch.start[s + 1], pool);
      }
    }
    return;
  }
  // Pieces of a page in two tasks would be a false sharing, not a race; rows are cut anywhere.
  const int64_t pieces = (longest + kWriteRowsPerTask - 1) / kWriteRowsPerTask;
  ParallelFor(batch.num_sequences * heads * pieces, [&](int64_t task) {
    const int64_t s = task / (heads * pieces);
    const int64_t begin = batch.start[s] + task % pieces * kWriteRowsPerTask;
    const int64_t end = std::min<int64_t>(batch.start[s + 1], begin + kWriteRowsPerTask);
    WriteRows(k, v, batch, s, task / pieces % heads, begin, end, pool);
  });
}

void KvWriteCpu(const at::Tensor& k, const at::Tensor& v, const at::Tensor& seq_slot,
                const at::Tensor& query_start, const at::Tensor& page_table,
                const at::Tensor& lengths, const at::Tensor& pool) {
  const Batch batch(seq_slot, query_start, page_table, lengths, k.size(0), pool.size(0),
                    "kv_write");
  if (pool.scalar_type() == at::kFloat) {
    WriteAll(k, v, batch, pool.mutable_data_ptr<float>());
  } else {
    WriteAll(k, v, batch, pool.mutable_data_ptr<c10::BFloat16>());
  }
}

// One call of paged_attention.
class Attention {
 public:
  Attention(const at::Tensor& q, const std::optional<at::Tensor>& q_sink, const at::Tensor& pool,
            const Batch& batch, const std::optional<at::Tensor>& window,
            const std::optional<at::Tensor>& sinks, const std::optional<at::Tensor>& hidden,
            const std::optional<at::Tensor>& hidden_from, double scale, int64_t kv_heads,
            const at::Tensor& out)
      : kernels_(Kernels(q.size(2))),
        half_(pool.scalar_type() == at::kBFloat16),
        batch_(batch),
        heads_(kv_heads),
        group_(q.size(1) / kv_heads),
        width_(q.size(2)),
        query_{q.const_data_ptr<float>(), q.stride(0), q.stride(1)},
        sink_query_(query_),
        out_(out.mutable_data_ptr<float>()),
        out_strides_{out.stride(0), out.stride(1)},
        pool_(pool.const_data_ptr()),
        scale_(static_cast<float>(scale)),
        window_(window.has_value() ? window->const_data_ptr<int32_t>() : nullptr),
        sinks_(sinks.has_value() ? sinks->const_data_ptr<int32_t>() : nullptr) {
    if (hidden.has_value()) {
      hidden_ = hidden->const_data_ptr<uint8_t>();
      hidden_stride_ = hidden->stride(0);
      hidden_size_ = hidden->size(1);
      hidden_from_ = hidden_from->const_data_ptr<int32_t>();
    }
    if (q_sink.has_value()) {
      sink_query_ = {q_sink->const_data_ptr<float>(), q_sink->stride(0), q_sink->stride(1)};
    }
  }

  void Run() {
    int64_t most = 0;
    int64_t num_tiles = 0;
    int64_t num_parts = 0;
    for (int64_t s = 0; s < batch_.num_sequences; ++s) {
      const int64_t tiles = TilesOf(s);
      most = std::max(most, tiles);
      num_tiles += tiles * heads_;
      for (int64_t h = 0; tiles > 0 && h < heads_; ++h) num_parts += tiles * Splits(s, h);
    }
    const bool few = num_tiles < kTilesPerThread * NumThreads() && NumThreads() > 1;
    if (few && num_parts > num_tiles && num_parts * PartBytes() <= kMaxPartBytes) {
      RunBySplits(most, num_tiles);
      return;
    }
    ParallelFor(batch_.num_sequences * heads_ * most, [&](int64_t task) {
      // Long tiles first: the last ones of a prompt see the most.
      const int64_t s = task / (heads_ * most);
      const int64_t tile = most - 1 - task / heads_ % most;
      if (tile < TilesOf(s)) RunTile(s, task % heads_, tile);
    });
  }

 private:
  struct Rows {
    const float* data;
    int64_t token_stride;
    int64_t head_stride;
  };

  // A tile is some (token, head of the group) pairs of one (sequence, kv head), tokens outermost.
  int64_t QueriesOf(int64_t s) const { return (batch_.start[s + 1] - batch_.start[s]) * group_; }
  int64_t TilesOf(int64_t s) const {
    return (QueriesOf(s) + kMaxTileQueries - 1) / kMaxTileQueries;
  }
  // Splits that the last query of the sequence sees.
  int64_t Splits(int64_t s, int64_t h) const {
    const int64_t entries = batch_.Length(s, h) + batch_.start[s + 1] - batch_.start[s];
    return (entries + kSplitEntries - 1) / kSplitEntries;
  }
  int64_t PartFloats() const { return kMaxTileQueries * (width_ + 2); }
  int64_t PartBytes() const { return PartFloats() * static_cast<int64_t>(sizeof(float)); }
  AttentionPart PartAt(float* memory) const {
    float* maxima = memory + kMaxTileQueries * width_;
    return {memory, maxima, maxima + kMaxTileQueries};
  }

  AttentionTile MakeTile(int64_t s, int64_t h, int64_t tile) const {
    AttentionTile result;
    result.pool = pool_;
    result.pages = batch_.Pages(s, h);
    result.head_size = width_;
    result.scale = scale_;
    result.window = window_ == nullptr ? 0 : window_[s];
    result.sinks = sinks_ == nullptr ? 0 : sinks_[s];
    const int64_t begin = tile * kMaxTileQueries;
    const int64_t end = std::min(QueriesOf(s), begin + kMaxTileQueries);
    result.num_queries = static_cast<int>(end - begin);
    result.hidden_size = hidden_size_;
    result.hidden_from = hidden_ == nullptr ? 0 : hidden_from_[s];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = batch_.start[s] + i / group_;
      const int64_t head = h * group_ + i % group_;
      result.query[i - begin] = At(query_, row, head);
      result.sink_query[i - begin] = At(sink_query_, row, head);
      result.own[i - begin] = batch_.Length(s, h) + i / group_;
      result.hidden[i - begin] = hidden_ == nullptr ? nullptr : hidden_ + row * hidden_stride_;
    }
    return result;
  }
  static const float* At(const Rows& rows, int64_t row, int64_t head) {
    return rows.data + row * rows.token_stride + head * rows.head_stride;
  }

  // Whether any query of the tile can see the split; page holes are left to the kernel.
  static bool MaySee(const AttentionTile& tile, int64_t split) {
    if (tile.window <= 0 || split * kSplitEntries < tile.sinks) return true;
    return (split + 1) * kSplitEntries > tile.own[0] - tile.window + 1;
  }

  void RunTile(int64_t s, int64_t h, int64_t tile_index) const {
    const AttentionTile tile = MakeTile(s, h, tile_index);
    alignas(64) float state_memory[kMaxTileQueries * (kMaxHeadSize + 2)];
    alignas(64) float part_memory[kMaxTileQueries * (kMaxHeadSize + 2)];
    const AttentionPart state = PartAt(state_memory);
    const AttentionPart part = PartAt(part_memory);
    std::fill_n(state.totals, kMaxTileQueries, 0.0f);
    const int64_t splits = tile.own[tile.num_queries - 1] / kSplitEntries + 1;
    for (int64_t split = 0; split < splits; ++split) {
      if (!MaySee(tile, split)) continue;
      kernels_.attend[half_](tile, split, part);
      kernels_.merge(tile.num_queries, width_, part, state);
    }
    Finish(s, h, tile_index, tile, state);
  }

  void RunBySplits(int64_t most, int64_t num_tiles) const {
    struct Piece {
      int64_t s, h, tile, first_part, splits;
    };
    std::vector<Piece> pieces;
    pieces.reserve(static_cast<size_t>(num_tiles));
    int64_t num_parts = 0;
    for (int64_t s = 0; s < batch_.num_sequences; ++s) {
      for (int64_t h = 0; h < heads_; ++h) {
        for (int64_t tile = 0; tile < std::min(most, TilesOf(s)); ++tile) {
          const int64_t last = std::min(QueriesOf(s), (tile + 1) * kMaxTileQueries) - 1;
          const int64_t own = batch_.Length(s, h) + last / group_;
          pieces.push_back({s, h, tile, num_parts, own / kSplitEntries + 1});
          num_parts += pieces.back().splits;
        }
      }
    }
    thread_local Scratch scratch;
    auto* memory = static_cast<float*>(scratch.Get(num_parts * PartBytes()));
    ParallelFor(num_parts, [&](int64_t task) {
      const auto after = std::upper_bound(
          pieces.begin(), pieces.end(), task,
          [](int64_t value, const Piece& piece) { return value < piece.first_part; });
      const Piece& piece = *(after - 1);
      const AttentionTile tile = MakeTile(piece.s, piece.h, piece.tile);
      const AttentionPart part = PartAt(memory + task * PartFloats());
      const int64_t split = task - piece.first_part;
      if (MaySee(tile, split)) {
        kernels_.attend[half_](tile, split, part);
      } else {
        std::fill_n(part.totals, tile.num_queries, 0.0f);
      }
    });
    for (const Piece& piece : pieces) {
      const AttentionTile tile = MakeTile(piece.s, piece.h, piece.tile);
      const AttentionPart state = PartAt(memory + piece.first_part * PartFloats());
      for (int64_t split = 1; split < piece.splits; ++split) {
        const AttentionPart part = PartAt(memory + (piece.first_part + split) * PartFloats());
        kernels_.merge(tile.num_queries, width_, part, state);
      }
      Finish(piece.s, piece.h, piece.tile, tile, state);
    }
  }

  void Finish(int64_t s, int64_t h, int64_t tile_index, const AttentionTile& tile,
              const AttentionPart& state) const {
    for (int q = 0; q < tile.num_queries; ++q) {
      const int64_t i = tile_index * kMaxTileQueries + q;
      float* y = out_ + (batch_.start[s] + i / group_) * out_strides_[0] +
                 (h * group_ + i % group_) * out_strides_[1];
      const float* sums = state.sums + q * width_;
      const float total = state.totals[q];
      for (int64_t d = 0; d < width_; ++d) y[d] = total == 0 ? 0.0f : sums[d] / total;
    }
  }

  const AttentionKernels& kernels_;
  const int half_;
  const Batch& batch_;
  const int64_t heads_;
  const int64_t group_;  // query heads per kv head
  const int64_t width_;
  const Rows query_;
  Rows sink_query_;
  float* const out_;
  const int64_t out_strides_[2];
  const void* const pool_;
  const float scale_;
  const int32_t* const window_;
  const int32_t* const sinks_;
  const uint8_t* hidden_ = nullptr;
  int64_t hidden_stride_ = 0;
  int64_t hidden_size_ = 0;
  const int32_t* hidden_from_ = nullptr;
};

void PagedAttentionCpu(const at::Tensor& q, const std::optional<at::Tensor>& q_sink,
                       const at::Tensor& pool, const at::Tensor& seq_slot,
                       const at::Tensor& query_start, const at::Tensor& page_table,
                       const at::Tensor& lengths, const std::optional<at::Tensor>& window,
                       const std::optional<at::Tensor>& sinks,
                       const std::optional<at::Tensor>& hidden,
                       const std::optional<at::Tensor>& hidden_from, double scale,
                       const at::Tensor& out) {
  const Batch batch(seq_slot, query_start, page_table, lengths, q.size(0), pool.size(0),
                    "paged_attention");
  Attention(q, q_sink, pool, batch, window, sinks, hidden, hidden_from, scale, page_table.size(1),
            out)
      .Run();
}

}  // namespace
}  // namespace mneme::kernels

TORCH_LIBRARY_IMPL(mneme, CPU, m) {
  m.impl("kv_write", mneme::kernels::KvWriteCpu);
  m.impl("paged_attention", mneme::kernels::PagedAttentionCpu);
}

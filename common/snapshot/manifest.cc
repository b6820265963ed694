#include "common/snapshot/manifest.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crypto/sha256.h"
#include "common/snapshot/chunk.h"
#include "common/status/status_macros.h"
#include "kernels/paged_attention_layout.h"

namespace mneme::snapshot {
namespace {

constexpr int64_t kDigestBytes = 16;

int64_t EndOf(const v1::Chunk& chunk) {
  return static_cast<int64_t>(chunk.first_serial() + chunk.num_serials());
}

bool IsSame(const EntryRuns& a, const EntryRuns& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const memory::EntryRun& x, const memory::EntryRun& y) {
                      return x.begin == y.begin && x.end == y.end;
                    });
}

absl::Status Differs(absl::string_view what, absl::string_view stored, absl::string_view wanted) {
  return absl::FailedPreconditionError(absl::StrCat(
      "the stored memory is of another ", what, ": \"", stored, "\" instead of \"", wanted, "\""));
}

absl::Status CheckLineage(const v1::Lineage& stored, const v1::Lineage& wanted) {
  if (stored.model_fingerprint() != wanted.model_fingerprint()) {
    return Differs("model", stored.model_fingerprint(), wanted.model_fingerprint());
  }
  if (stored.adapter() != wanted.adapter()) {
    return Differs("adapter", stored.adapter(), wanted.adapter());
  }
  if (stored.policy() != wanted.policy()) {
    return Differs("memory policy", stored.policy(), wanted.policy());
  }
  return absl::OkStatus();
}

// Adds the entries of a chunk to those that chunks have of each head of the model.
absl::Status AddCovered(const v1::Chunk& chunk, const memory::KvShape& shape,
                        std::vector<EntryRuns>* covered) {
  const int64_t first = static_cast<int64_t>(chunk.first_serial());
  for (int64_t i = 0; i < chunk.num_layers() * shape.num_kv_heads; ++i) {
    EntryRuns& of_head = (*covered)[chunk.first_layer() * shape.num_kv_heads + i];
    EntryRuns added{{first, EndOf(chunk)}};
    if (!chunk.heads().empty()) {
      ASSIGN_OR_RETURN(added, FromWire(chunk.heads(static_cast<int>(i)), first, EndOf(chunk)));
    }
    for (const memory::EntryRun& run : added) {
      if (!of_head.empty() && of_head.back().end == run.begin) {
        of_head.back().end = run.end;
      } else {
        of_head.push_back(run);
      }
    }
  }
  return absl::OkStatus();
}

// Says whether a restored sequence would have every entry that queries from `num_entries` on see,
// and no page with entries that were never written.
absl::Status CheckHeld(const EntryRuns& held, const EntryRuns& covered,
                       const memory::MemoryPolicy& policy, const memory::AttentionMask& mask,
                       int64_t num_entries) {
  for (const memory::EntryRun& run : held) {
    // Entries that move are packed into pages when they come back.
    const bool is_paged = policy.moves_entries() ||
                          (run.begin % kernels::kPageEntries == 0 &&
                           (run.end % kernels::kPageEntries == 0 || run.end == num_entries));
    if (!is_paged) {
      return absl::InvalidArgumentError(
          absl::StrCat("held entries are not whole pages: [", run.begin, ", ", run.end, ")"));
    }
    if (!Contains(covered, run.begin, run.end)) {
      return absl::InvalidArgumentError(
          absl::StrCat("held entries are in no chunk: some of [", run.begin, ", ", run.end, ")"));
    }
  }
  // Which entries such a policy needs is its own affair: the state that comes with them says it.
  if (policy.moves_entries()) return absl::OkStatus();
  const int64_t recent = mask.window == 0 ? 0 : std::max<int64_t>(num_entries - mask.window + 1, 0);
  if (!Contains(held, recent, num_entries) ||
      !Contains(held, 0, std::min(mask.sinks, num_entries))) {
    return absl::InvalidArgumentError(
        absl::StrCat("entries that the policy needs are not held: some of the first ", mask.sinks,
                     " or of those from ", recent, " on"));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t NumEntries(const v1::Manifest& manifest) {
  return static_cast<int64_t>(manifest.num_entries() > 0 ? manifest.num_entries()
                                                         : manifest.num_tokens());
}

std::string TokensDigest(absl::Span<const int32_t> tokens) {
  std::string bytes;
  bytes.reserve(4 * tokens.size());
  for (const int32_t token : tokens) {
    const uint32_t id = static_cast<uint32_t>(token);
    for (int shift = 0; shift < 32; shift += 8) {
      bytes.push_back(static_cast<char>(id >> shift & 0xFF));
    }
  }
  return crypto::Sha256(bytes);
}

v1::Manifest MakeManifest(const memory::KvSequence& sequence, const v1::Lineage& lineage,
                          absl::Span<const int32_t> tokens, std::vector<v1::Chunk> chunks,
                          int64_t now_unix_ms) {
  const memory::KvShape& shape = sequence.shape();
  const int64_t num_tokens = sequence.num_tokens();
  const int64_t num_entries = sequence.extent().num_entries;
  v1::Manifest manifest;
  manifest.set_format_version(kFormatVersion);
  *manifest.mutable_lineage() = lineage;
  manifest.mutable_shape()->set_num_layers(static_cast<int32_t>(shape.num_layers));
  manifest.mutable_shape()->set_num_kv_heads(static_cast<int32_t>(shape.num_kv_heads));
  manifest.mutable_shape()->set_head_size(static_cast<int32_t>(shape.head_size));
  manifest.set_num_tokens(static_cast<uint64_t>(num_tokens));
  manifest.set_tokens_digest(TokensDigest(tokens.first(num_tokens)));
  manifest.set_created_unix_ms(now_unix_ms);
  if (num_entries != num_tokens) manifest.set_num_entries(static_cast<uint64_t>(num_entries));
  if (sequence.state() != nullptr) manifest.set_policy_state(sequence.state()->Serialise());

  std::vector<EntryRuns> held;
  held.reserve(shape.num_heads());
  bool is_uniform = true;
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      held.push_back(HeldRuns(sequence, layer, head, 0, num_entries));
      is_uniform &= IsSame(held.back(), held.front());
    }
  }
  if (is_uniform) held.resize(1);
  for (const EntryRuns& runs : held) ToWire(runs, 0, manifest.add_held());

  for (v1::Chunk& chunk : chunks) {
    bool is_held = false;
    const int64_t first_head = chunk.first_layer() * shape.num_kv_heads;
    for (int64_t i = 0; i < chunk.num_layers() * shape.num_kv_heads && !is_held; ++i) {
      is_held = Touches(held[is_uniform ? 0 : first_head + i],
                        static_cast<int64_t>(chunk.first_serial()), EndOf(chunk));
    }
    if (is_held) *manifest.add_chunks() = std::move(chunk);
  }
  return manifest;
}

absl::StatusOr<std::vector<EntryRuns>> HeldOf(const v1::Manifest& manifest,
                                              const memory::KvShape& shape) {
  if (manifest.held_size() != 1 && manifest.held_size() != shape.num_heads()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a manifest has not one set of held entries per layer and head: ", manifest.held_size()));
  }
  std::vector<EntryRuns> held;
  held.reserve(shape.num_heads());
  for (const v1::Runs& runs : manifest.held()) {
    ASSIGN_OR_RETURN(EntryRuns entries, FromWire(runs, 0, NumEntries(manifest)));
    held.push_back(std::move(entries));
  }
  held.resize(shape.num_heads(), held.front());
  return held;
}

absl::Status CheckManifest(const v1::Manifest& manifest, const v1::Lineage& lineage,
                           const memory::KvShape& shape, const memory::MemoryPolicy& policy,
                           absl::Span<const int32_t> tokens) {
  if (manifest.format_version() != kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "this version does not know the stored memory's format: ", manifest.format_version()));
  }
  RETURN_IF_ERROR(CheckLineage(manifest.lineage(), lineage));
  if (manifest.shape().num_layers() != shape.num_layers ||
      manifest.shape().num_kv_heads() != shape.num_kv_heads ||
      manifest.shape().head_size() != shape.head_size) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the stored memory has another shape: ", manifest.shape().num_layers(), " layers, ",
        manifest.shape().num_kv_heads(), " heads of ", manifest.shape().head_size()));
  }
  if (manifest.num_tokens() == 0 || manifest.num_tokens() > tokens.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the stored memory covers more or fewer tokens than the prompt has: ",
                     manifest.num_tokens(), " of ", tokens.size()));
  }
  const int64_t num_tokens = static_cast<int64_t>(manifest.num_tokens());
  if (manifest.tokens_digest() != TokensDigest(tokens.first(num_tokens))) {
    return absl::FailedPreconditionError("the stored memory is of other tokens");
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<memory::PolicyState> state,
                   policy.RestoreState(shape, manifest.policy_state()));
  const int64_t num_entries = NumEntries(manifest);
  const std::optional<memory::PolicyState::Extent> extent =
      state == nullptr ? std::nullopt : state->extent();
  if (num_entries != (extent.has_value() ? extent->num_entries : num_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a stored memory has not the entries that its policy speaks of: ", num_entries,
                     ", ", num_tokens, " tokens"));
  }

  std::vector<EntryRuns> covered(shape.num_heads());
  std::vector<int64_t> layer_ends(shape.num_layers, 0);
  uint64_t previous = 0;
  for (const v1::Chunk& chunk : manifest.chunks()) {
    RETURN_IF_ERROR(CheckChunk(chunk, shape));
    if (static_cast<int64_t>(chunk.digest().size()) != kDigestBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a chunk's digest has a wrong size: ", chunk.digest().size()));
    }
    if (chunk.first_serial() < previous || EndOf(chunk) > num_entries) {
      return absl::InvalidArgumentError(
          absl::StrCat("a chunk is out of order or beyond the tokens: serials ",
                       chunk.first_serial(), " + ", chunk.num_serials()));
    }
    previous = chunk.first_serial();
    for (int64_t i = 0; i < chunk.num_layers(); ++i) {
      int64_t& layer_end = layer_ends[chunk.first_layer() + i];
      if (static_cast<int64_t>(chunk.first_serial()) < layer_end) {
        return absl::InvalidArgumentError(absl::StrCat(
            "two chunks have the same serials of a layer: from ", chunk.first_serial()));
      }
      layer_end = EndOf(chunk);
    }
    RETURN_IF_ERROR(AddCovered(chunk, shape, &covered));
  }
  ASSIGN_OR_RETURN(const std::vector<EntryRuns> held, HeldOf(manifest, shape));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    // Where entries are not one per token, distances are not those of the text: all are needed.
    const memory::AttentionMask mask =
        extent.has_value() ? memory::AttentionMask()
                           : memory::MaskOfLayer(policy.mask(), shape.sliding_window(layer));
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const int64_t h = layer * shape.num_kv_heads + head;
      RETURN_IF_ERROR(CheckHeld(held[h], covered[h], policy, mask, num_entries));
    }
  }
  return absl::OkStatus();
}

int64_t KeepChunksUpTo(int64_t num_entries, std::vector<v1::Chunk>* chunks) {
  // A chunk that is cut takes those of the same serials of other layers with it.
  int64_t end = num_entries;
  for (auto chunk = chunks->rbegin(); chunk != chunks->rend(); ++chunk) {
    if (EndOf(*chunk) > end) end = std::min(end, static_cast<int64_t>(chunk->first_serial()));
  }
  std::erase_if(*chunks, [end](const v1::Chunk& chunk) { return EndOf(chunk) > end; });
  return end;
}

}  // namespace mneme::snapshot

// Manifests: what a stored memory consists of, and whether it may be used for a prompt at hand.
//
//   RETURN_IF_ERROR(CheckManifest(manifest, lineage, shape, *policy, prompt));
//   ASSIGN_OR_RETURN(const std::vector<EntryRuns> held, HeldOf(manifest, shape));
//   RETURN_IF_ERROR(sequence.Restore(manifest.num_tokens(), held, NumEntries(manifest)));
//   for (const v1::Chunk& chunk : manifest.chunks()) RETURN_IF_ERROR(ImportChunk(chunk, …));
//   RETURN_IF_ERROR(sequence.RestoreState(manifest.policy_state()));
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/memory/kv_sequence.h"
#include "common/memory/kv_shape.h"
#include "common/memory/memory_policy.h"
#include "common/snapshot/runs.h"
#include "mneme/snapshot/v1/snapshot.pb.h"

namespace mneme::snapshot {

inline constexpr uint32_t kFormatVersion = 1;

// SHA-256 of token ids, each as four bytes, least significant first.
std::string TokensDigest(absl::Span<const int32_t> tokens);

// Returns how many entries every head has had, those of tokens or, under policy beacon, others.
int64_t NumEntries(const v1::Manifest& manifest);

// Describes the sequence's memory, of the first sequence.num_tokens() of `tokens`. `chunks` cover
// it, in the order of first_serial; those of which nothing is held any more are left out.
v1::Manifest MakeManifest(const memory::KvSequence& sequence, const v1::Lineage& lineage,
                          absl::Span<const int32_t> tokens, std::vector<v1::Chunk> chunks,
                          int64_t now_unix_ms);

// Says whether the memory may be used for a prompt that begins with `tokens`.
// FAILED_PRECONDITION: it belongs to another model, adapter, policy or other tokens, or its format
// is unknown; rebuild by prefill. INVALID_ARGUMENT: it is not sound: entries that are held or that
// the policy needs are in no chunk, in several, or sizes don't fit. Anything may be given; nothing
// in a sound manifest can make ImportChunk write outside the sequence.
absl::Status CheckManifest(const v1::Manifest& manifest, const v1::Lineage& lineage,
                           const memory::KvShape& shape, const memory::MemoryPolicy& policy,
                           absl::Span<const int32_t> tokens);

// Returns the entries held, per (layer, head). The manifest must be sound.
absl::StatusOr<std::vector<EntryRuns>> HeldOf(const v1::Manifest& manifest,
                                              const memory::KvShape& shape);

// Cuts the chunks of a memory of which the first `num_entries` entries per head stay as they are:
// those that end later are dropped. Returns from which serial on chunks have to be written anew.
int64_t KeepChunksUpTo(int64_t num_entries, std::vector<v1::Chunk>* chunks);

}  // namespace mneme::snapshot

#include "services/memory/snapshot_check.h"

#include <set>

#include "absl/strings/str_cat.h"
#include "common/crypto/crc32c.h"
#include "common/crypto/sha256.h"
#include "common/status/annotate.h"

namespace mneme::memory {
namespace {

std::string Words(const snapshot::v1::Chunk& chunk) {
  return absl::StrCat("layers ", chunk.first_layer(), " to ",
                      chunk.first_layer() + chunk.num_layers(), ", serials ", chunk.first_serial(),
                      " to ", chunk.first_serial() + chunk.num_serials());
}

}  // namespace

absl::StatusOr<std::string> DigestOf(const v1::ChunkPayload& chunk) {
  const std::string& payload = chunk.payload();
  if (payload.empty() || payload.size() > kMaxChunkBytes) {
    return status::InvalidField(
        "chunk.payload", absl::StrCat("must be 1 to ", kMaxChunkBytes, " bytes: ", payload.size()));
  }
  if (chunk.chunk().num_bytes() != payload.size() ||
      chunk.chunk().crc32c() != crypto::Crc32c(payload)) {
    return absl::DataLossError(absl::StrCat("a chunk came with other bytes than it was sent with: ",
                                            Words(chunk.chunk())));
  }
  std::string digest = crypto::Sha256(payload);
  digest.resize(kChunkDigestBytes);
  if (!chunk.chunk().digest().empty() && chunk.chunk().digest() != digest) {
    return absl::DataLossError(
        absl::StrCat("a chunk's digest is not that of its payload: ", Words(chunk.chunk())));
  }
  return digest;
}

SentChunks::Place SentChunks::PlaceOf(const snapshot::v1::Chunk& chunk) {
  return {chunk.first_layer(), chunk.num_layers(), chunk.first_serial(), chunk.num_serials()};
}

void SentChunks::Add(const snapshot::v1::Chunk& chunk) { by_place_[PlaceOf(chunk)] = chunk; }

bool SentChunks::Has(const snapshot::v1::Chunk& chunk) const {
  const auto sent = by_place_.find(PlaceOf(chunk));
  return sent != by_place_.end() && sent->second.digest() == chunk.digest();
}

absl::Status SentChunks::Complete(int64_t now_ms, snapshot::v1::Manifest* manifest) const {
  if (manifest->format_version() != kSnapshotFormat) {
    return status::InvalidField(
        "manifest.format_version",
        absl::StrCat("must be ", kSnapshotFormat, ": ", manifest->format_version()));
  }
  if (manifest->num_tokens() == 0) return status::InvalidField("manifest.num_tokens", "is 0");
  if (manifest->created_unix_ms() == 0) manifest->set_created_unix_ms(now_ms);
  for (int i = 0; i < manifest->chunks_size(); ++i) {
    snapshot::v1::Chunk* chunk = manifest->mutable_chunks(i);
    if (chunk->digest().empty()) {
      const auto sent = by_place_.find(PlaceOf(*chunk));
      if (sent == by_place_.end() || sent->second.num_bytes() != chunk->num_bytes() ||
          sent->second.crc32c() != chunk->crc32c()) {
        return status::InvalidField(
            "manifest.chunks",
            absl::StrCat("has no digest and was not sent, at position ", i, ": ", Words(*chunk)));
      }
      chunk->set_digest(sent->second.digest());
    }
    if (chunk->digest().size() != kChunkDigestBytes || chunk->num_bytes() == 0 ||
        chunk->num_bytes() > kMaxChunkBytes) {
      return status::InvalidField(
          "manifest.chunks", absl::StrCat("has a digest or size that cannot be, at position ", i));
    }
  }
  return absl::OkStatus();
}

int64_t PayloadBytes(const snapshot::v1::Manifest& manifest) {
  std::set<absl::string_view> seen;
  int64_t bytes = 0;
  for (const snapshot::v1::Chunk& chunk : manifest.chunks()) {
    if (seen.insert(chunk.digest()).second) bytes += chunk.num_bytes();
  }
  return bytes;
}

}  // namespace mneme::memory

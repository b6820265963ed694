#include "services/memory/chunk_codec.h"

#include <zstd.h>

#include "absl/strings/str_cat.h"

namespace mneme::memory {
namespace {

constexpr char kPlain = 0;
constexpr char kZstd = 1;
constexpr int kLevel = 1;

}  // namespace

std::string PackChunk(absl::string_view payload) {
  std::string packed(1 + ZSTD_compressBound(payload.size()), kZstd);
  const size_t size =
      ZSTD_compress(packed.data() + 1, packed.size() - 1, payload.data(), payload.size(), kLevel);
  if (ZSTD_isError(size) || size >= payload.size()) {
    packed.assign(1, kPlain);
    packed.append(payload.data(), payload.size());
  } else {
    packed.resize(1 + size);
  }
  return packed;
}

absl::StatusOr<std::string> UnpackChunk(absl::string_view packed, size_t max_bytes) {
  if (packed.empty()) return absl::DataLossError("a chunk's file is empty");
  const absl::string_view content = packed.substr(1);
  if (packed[0] == kPlain) {
    if (content.size() > max_bytes) return absl::DataLossError("a chunk's file holds too much");
    return std::string(content);
  }
  if (packed[0] != kZstd) {
    return absl::DataLossError(
        absl::StrCat("a chunk's file is packed in an unknown way: ", static_cast<int>(packed[0])));
  }
  const unsigned long long size = ZSTD_getFrameContentSize(content.data(), content.size());
  if (size == ZSTD_CONTENTSIZE_UNKNOWN || size == ZSTD_CONTENTSIZE_ERROR || size > max_bytes) {
    return absl::DataLossError("a chunk's file does not say how much it holds, or it is too much");
  }
  std::string payload(size, '\0');
  const size_t unpacked =
      ZSTD_decompress(payload.data(), payload.size(), content.data(), content.size());
  if (ZSTD_isError(unpacked) || unpacked != payload.size()) {
    return absl::DataLossError("a chunk's file cannot be unpacked");
  }
  return payload;
}

}  // namespace mneme::memory

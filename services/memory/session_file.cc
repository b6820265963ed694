#include "services/memory/session_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/crypto/crc32c.h"
#include "common/status/status_macros.h"

namespace mneme::memory {
namespace {

// The last character is the version.
constexpr absl::string_view kMagic = "MNEMESS1";
constexpr size_t kPieceBytes = 1 << 20;
constexpr size_t kHeadBytes = 1 + 4;  // kind, length
constexpr size_t kSumBytes = 4;
// Larger than any turn that the services' message limit lets through.
constexpr uint32_t kMaxRecordBytes = 128 << 20;

// All numbers are little-endian, as the machines that Mneme runs on are.
std::string Bytes(uint32_t number) {
  std::string bytes(sizeof(number), '\0');
  std::memcpy(bytes.data(), &number, sizeof(number));
  return bytes;
}

uint32_t NumberAt(const char* bytes) {
  uint32_t number;
  std::memcpy(&number, bytes, sizeof(number));
  return number;
}

}  // namespace

SessionFileWriter::SessionFileWriter(PieceSink sink) : sink_(std::move(sink)) {
  piece_ = std::string(kMagic);
  digest_.Add(kMagic);
}

absl::Status SessionFileWriter::Write(absl::string_view bytes) {
  while (!bytes.empty()) {
    const absl::string_view part = bytes.substr(0, kPieceBytes - piece_.size());
    absl::StrAppend(&piece_, part);
    bytes.remove_prefix(part.size());
    if (piece_.size() < kPieceBytes) break;
    RETURN_IF_ERROR(sink_(std::exchange(piece_, "")));
  }
  return absl::OkStatus();
}

absl::Status SessionFileWriter::Add(RecordKind kind, absl::string_view content) {
  if (content.size() > kMaxRecordBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a part of the session is too large for a file: ", content.size()));
  }
  const std::string head = absl::StrCat(std::string(1, static_cast<char>(kind)),
                                        Bytes(static_cast<uint32_t>(content.size())));
  const std::string sum = Bytes(crypto::Crc32c(content, crypto::Crc32c(head)));
  if (kind != RecordKind::kEnd) {
    for (const absl::string_view part :
         {absl::string_view(head), content, absl::string_view(sum)}) {
      digest_.Add(part);
    }
  }
  RETURN_IF_ERROR(Write(head));
  RETURN_IF_ERROR(Write(content));
  return Write(sum);
}

absl::Status SessionFileWriter::Finish() {
  RETURN_IF_ERROR(Add(RecordKind::kEnd, digest_.Finish()));
  return piece_.empty() ? absl::OkStatus() : sink_(std::move(piece_));
}

SessionFileReader::SessionFileReader(RecordSink sink) : sink_(std::move(sink)) {}

absl::Status SessionFileReader::Damaged(absl::string_view why) const {
  return absl::DataLossError(absl::StrCat("the session file is damaged: record ", num_records_,
                                          ", at byte ", offset_, ": ", why));
}

absl::Status SessionFileReader::Add(absl::string_view piece) {
  absl::StrAppend(&rest_, piece);
  size_t used = 0;
  if (!has_header_) {
    const size_t known = std::min(rest_.size(), kMagic.size());
    if (rest_.substr(0, known) != kMagic.substr(0, known)) {
      return Damaged("it does not begin like a session file of this version");
    }
    if (known < kMagic.size()) return absl::OkStatus();
    has_header_ = true;
    digest_.Add(kMagic);
    used = kMagic.size();
    offset_ += used;
  }
  while (true) {
    absl::StatusOr<size_t> taken = TakeRecord(absl::string_view(rest_).substr(used));
    RETURN_IF_ERROR(taken.status());
    if (*taken == 0) break;
    used += *taken;
    offset_ += *taken;
    ++num_records_;
  }
  rest_.erase(0, used);
  return absl::OkStatus();
}

absl::StatusOr<size_t> SessionFileReader::TakeRecord(absl::string_view rest) {
  if (rest.empty()) return 0;
  if (has_end_) return Damaged("something follows its end");
  const auto kind = static_cast<RecordKind>(rest[0]);
  if (kind < RecordKind::kSession || kind > RecordKind::kEnd) return Damaged("unknown kind");
  if (rest.size() < kHeadBytes) return 0;
  const uint32_t size = NumberAt(rest.data() + 1);
  if (size > kMaxRecordBytes) return Damaged("a length that cannot be");
  const size_t whole = kHeadBytes + size + kSumBytes;
  if (rest.size() < whole) return 0;
  if (crypto::Crc32c(rest.substr(0, kHeadBytes + size)) !=
      NumberAt(rest.data() + kHeadBytes + size)) {
    return Damaged("its checksum does not fit");
  }
  std::string content(rest.substr(kHeadBytes, size));
  if (kind == RecordKind::kEnd) {
    if (content != digest_.Finish()) return Damaged("the digest of the whole does not fit");
    has_end_ = true;
    return whole;
  }
  digest_.Add(rest.substr(0, whole));
  RETURN_IF_ERROR(sink_(kind, std::move(content)));
  return whole;
}

absl::Status SessionFileReader::Finish() {
  return has_end_ ? absl::OkStatus() : Damaged("the file is cut off here");
}

}  // namespace mneme::memory

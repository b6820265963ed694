// The file that a session is exported to and imported from (docs/snapshots.md): records, each with
// its own checksum, and a digest of all at the end.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/crypto/sha256.h"

namespace mneme::memory {

enum class RecordKind : uint8_t {
  kSession = 1,   // v1.Session, first
  kChunk = 2,     // v1.ChunkPayload, before the first manifest that lists it
  kManifest = 3,  // snapshot.v1.Manifest, of the turn that comes next
  kTurn = 4,      // v1.Turn
  kEnd = 5,       // SHA-256 of all bytes before this record
};

// Takes the next piece of a file, at most 1 MiB.
using PieceSink = std::function<absl::Status(std::string piece)>;

// Used by one thread at a time.
class SessionFileWriter {
 public:
  explicit SessionFileWriter(PieceSink sink);

  absl::Status Add(RecordKind kind, absl::string_view content);
  // Ends the file.
  absl::Status Finish();

 private:
  absl::Status Write(absl::string_view bytes);

  const PieceSink sink_;
  crypto::Sha256Stream digest_;
  std::string piece_;
};

// Takes a record that is whole.
using RecordSink = std::function<absl::Status(RecordKind kind, std::string content)>;

// Reads a file that comes in pieces of any size; holds one record at a time. Used by one thread at
// a time. DATA_LOSS names the record and the byte where the file is not what was written.
class SessionFileReader {
 public:
  explicit SessionFileReader(RecordSink sink);

  absl::Status Add(absl::string_view piece);
  // Returns OK only if the file was whole.
  absl::Status Finish();

 private:
  absl::Status Damaged(absl::string_view why) const;
  // Returns how many bytes of `rest` were used up; 0: a record is not yet whole.
  absl::StatusOr<size_t> TakeRecord(absl::string_view rest);

  const RecordSink sink_;
  crypto::Sha256Stream digest_;
  std::string rest_;
  uint64_t offset_ = 0;  // of rest_ in the file
  int64_t num_records_ = 0;
  bool has_header_ = false;
  bool has_end_ = false;
};

}  // namespace mneme::memory

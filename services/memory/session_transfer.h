// Sessions to files and back, for any store.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "services/memory/session_file.h"
#include "services/memory/session_store.h"

namespace mneme::memory {

// Writes a session as a file, in pieces. Snapshots whose chunks are lost are left out; the text is
// never. What has been sent when an error comes is no file: its end is missing.
absl::Status ExportSession(SessionStore& store, const v1::ExportSessionRequest& request,
                           const PieceSink& sink, absl::Time deadline);

// Makes a session from a file that comes in pieces: wholly, or not at all. Used by one thread at a
// time.
class SessionImporter {
 public:
  // `store` must outlive this. The session id may be empty: the file's own.
  SessionImporter(SessionStore& store, v1::ImportSessionRequest::Header header,
                  absl::Time deadline);

  absl::Status Add(absl::string_view piece) { return reader_.Add(piece); }
  absl::StatusOr<v1::ImportSessionResponse> Finish();

 private:
  absl::Status Take(RecordKind kind, std::string content);

  SessionStore& store_;
  const v1::ImportSessionRequest::Header header_;
  const absl::Time deadline_;
  std::unique_ptr<SessionImport> import_;
  WholeSession session_;
  std::optional<snapshot::v1::Manifest> manifest_;
  size_t bytes_ = 0;  // of all but chunks, which stay in memory until the end
  SessionFileReader reader_;
};

}  // namespace mneme::memory

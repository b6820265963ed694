#include "services/memory/session_transfer.h"

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/trace/request_context.h"
#include "services/memory/session_errors.h"

namespace mneme::memory {
namespace {

// Of turns and manifests; chunks go on to the store as they come.
constexpr size_t kMaxHeldBytes = 256 << 20;

}  // namespace

absl::Status ExportSession(SessionStore& store, const v1::ExportSessionRequest& request,
                           const PieceSink& sink, absl::Time deadline) {
  ASSIGN_OR_RETURN(const WholeSession whole,
                   store.ReadSession(request.tenant(), request.session_id(), deadline));
  SessionFileWriter writer(sink);
  RETURN_IF_ERROR(writer.Add(RecordKind::kSession, whole.session.SerializeAsString()));
  std::set<std::string> sent;
  for (const WholeSession::Turn& turn : whole.turns) {
    if (turn.manifest.has_value() && !request.without_snapshot()) {
      v1::FetchSnapshotRequest fetch;
      fetch.set_tenant(request.tenant());
      fetch.set_session_id(request.session_id());
      fetch.set_version(turn.turn.version());
      const auto& chunks = turn.manifest->chunks();
      for (int i = 0; i < chunks.size(); ++i) {
        if (sent.insert(chunks[i].digest()).second) fetch.add_chunks(i);
      }
      const auto write = [&](v1::FetchSnapshotResponse part) -> absl::Status {
        if (!part.has_chunk()) return absl::OkStatus();
        v1::ChunkPayload chunk;
        *chunk.mutable_chunk() = chunks[part.chunk().index()];
        chunk.set_payload(std::move(*part.mutable_chunk()->mutable_payload()));
        return writer.Add(RecordKind::kChunk, chunk.SerializeAsString());
      };
      const absl::Status fetched =
          fetch.chunks_size() == 0 ? absl::OkStatus() : store.FetchSnapshot(fetch, write, deadline);
      if (absl::IsDataLoss(fetched)) {
        // Some of them may have been written; the next turn that lists any of them asks anew.
        for (const int i : fetch.chunks()) sent.erase(chunks[i].digest());
      } else {
        RETURN_IF_ERROR(fetched);
        RETURN_IF_ERROR(writer.Add(RecordKind::kManifest, turn.manifest->SerializeAsString()));
      }
    }
    RETURN_IF_ERROR(writer.Add(RecordKind::kTurn, turn.turn.SerializeAsString()));
  }
  return writer.Finish();
}

SessionImporter::SessionImporter(SessionStore& store, v1::ImportSessionRequest::Header header,
                                 absl::Time deadline)
    : store_(store),
      header_(std::move(header)),
      deadline_(deadline),
      reader_([this](RecordKind kind, std::string content) {
        return Take(kind, std::move(content));
      }) {}

absl::Status SessionImporter::Take(RecordKind kind, std::string content) {
  const auto unreadable = [] {
    return absl::DataLossError("the session file is not one that this version can have written");
  };
  if ((kind == RecordKind::kSession) != (import_ == nullptr)) return unreadable();
  if (kind != RecordKind::kChunk && (bytes_ += content.size()) > kMaxHeldBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the session's text is larger than can be imported: ", kMaxHeldBytes));
  }
  switch (kind) {
    case RecordKind::kSession: {
      v1::Session& session = session_.session;
      if (!session.ParseFromString(content)) return unreadable();
      if (!header_.session_id().empty()) session.set_session_id(header_.session_id());
      // Whoever can compute a checksum can write a file.
      if (!trace::IsIdentifier(session.session_id()) || session.model().empty() ||
          session.ttl_seconds() < 0) {
        return unreadable();
      }
      ASSIGN_OR_RETURN(import_, store_.ImportSession(header_.tenant(), deadline_));
      return absl::OkStatus();
    }
    case RecordKind::kChunk: {
      v1::ChunkPayload chunk;
      if (!chunk.ParseFromString(content)) return unreadable();
      return import_->Add(std::move(chunk));
    }
    case RecordKind::kManifest:
      if (!manifest_.emplace().ParseFromString(content)) return unreadable();
      return absl::OkStatus();
    case RecordKind::kTurn: {
      WholeSession::Turn& turn = session_.turns.emplace_back();
      if (!turn.turn.ParseFromString(content) || turn.turn.version() != session_.turns.size()) {
        return unreadable();
      }
      const std::string& request_id = turn.turn.request_id();
      if (!request_id.empty() && !trace::IsIdentifier(request_id)) return unreadable();
      turn.manifest = std::exchange(manifest_, std::nullopt);
      return absl::OkStatus();
    }
    case RecordKind::kEnd:
      break;
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ImportSessionResponse> SessionImporter::Finish() {
  RETURN_IF_ERROR(reader_.Finish());
  if (import_ == nullptr || session_.session.version() != session_.turns.size()) {
    return absl::DataLossError("the session file is whole, and yet turns are missing");
  }
  v1::ImportSessionResponse response;
  ASSIGN_OR_RETURN(*response.mutable_session(), import_->Finish(std::move(session_)));
  return response;
}

}  // namespace mneme::memory

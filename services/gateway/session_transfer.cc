#include "services/gateway/session_transfer.h"

#include <algorithm>
#include <utility>

#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::gateway {
namespace {

namespace mv1 = memory::v1;

constexpr size_t kMaxPieceBytes = 1 << 20;

absl::Status Explain(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return status;
  return status::WithRetryAfter(status::Annotate(status, "the memory service does not answer"),
                                absl::Seconds(1));
}

}  // namespace

SessionExport::SessionExport(mv1::MemoryService::Stub& stub,
                             const mv1::ExportSessionRequest& request,
                             const trace::RequestContext& context, absl::Time deadline) {
  rpc::Prepare(context, deadline, &context_);
  reader_ = stub.ExportSession(&context_, request);
}

SessionExport::~SessionExport() {
  if (finished_) return;
  context_.TryCancel();
  mv1::ExportSessionResponse rest;
  while (reader_->Read(&rest)) {
  }
  reader_->Finish();
}

absl::StatusOr<bool> SessionExport::Next(std::string* piece) {
  mv1::ExportSessionResponse response;
  if (!finished_ && reader_->Read(&response)) {
    *piece = std::move(*response.mutable_piece());
    return true;
  }
  if (std::exchange(finished_, true)) return false;
  RETURN_IF_ERROR(Explain(rpc::FromGrpc(reader_->Finish())));
  return false;
}

SessionImport::SessionImport(mv1::MemoryService::Stub& stub,
                             const mv1::ImportSessionRequest::Header& header,
                             const trace::RequestContext& context, absl::Time deadline) {
  rpc::Prepare(context, deadline, &context_);
  writer_ = stub.ImportSession(&context_, &response_);
  mv1::ImportSessionRequest first;
  *first.mutable_header() = header;
  refused_ = !writer_->Write(first);
}

SessionImport::~SessionImport() {
  if (finished_) return;
  context_.TryCancel();
  writer_->Finish();
}

bool SessionImport::Send() {
  if (!part_.piece().empty() && !refused_) refused_ = !writer_->Write(part_);
  part_.clear_piece();
  return !refused_;
}

bool SessionImport::Write(absl::string_view bytes) {
  while (!bytes.empty() && !refused_) {
    std::string& piece = *part_.mutable_piece();
    const absl::string_view front = bytes.substr(0, kMaxPieceBytes - piece.size());
    piece.append(front.data(), front.size());
    bytes.remove_prefix(front.size());
    if (piece.size() == kMaxPieceBytes) Send();
  }
  return !refused_;
}

absl::StatusOr<mv1::ImportSessionResponse> SessionImport::Finish() {
  if (Send()) writer_->WritesDone();
  finished_ = true;
  RETURN_IF_ERROR(Explain(rpc::FromGrpc(writer_->Finish())));
  return std::move(response_);
}

}  // namespace mneme::gateway

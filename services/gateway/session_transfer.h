// A session's file on its way from or to the memory service. Neither holds more than a piece of it.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/trace/request_context.h"
#include "mneme/memory/v1/memory.grpc.pb.h"

namespace mneme::gateway {

// Used by one thread. The destructor ends the transfer.
class SessionExport {
 public:
  // `stub` must outlive the transfer.
  SessionExport(memory::v1::MemoryService::Stub& stub,
                const memory::v1::ExportSessionRequest& request,
                const trace::RequestContext& context, absl::Time deadline);
  ~SessionExport();

  // Reads the next piece. Returns false when the file is complete; it is not where an error came.
  absl::StatusOr<bool> Next(std::string* piece);

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<memory::v1::ExportSessionResponse>> reader_;
  bool finished_ = false;
};

// Used by one thread. Without Finish nothing is imported.
class SessionImport {
 public:
  // `stub` must outlive the transfer.
  SessionImport(memory::v1::MemoryService::Stub& stub,
                const memory::v1::ImportSessionRequest::Header& header,
                const trace::RequestContext& context, absl::Time deadline);
  ~SessionImport();

  // Sends more of the file, of any size. Returns false when the service wants no more of it: Finish
  // then says why.
  bool Write(absl::string_view bytes);
  // The file is complete.
  absl::StatusOr<memory::v1::ImportSessionResponse> Finish();

 private:
  bool Send();

  grpc::ClientContext context_;
  memory::v1::ImportSessionResponse response_;
  std::unique_ptr<grpc::ClientWriter<memory::v1::ImportSessionRequest>> writer_;
  memory::v1::ImportSessionRequest part_;  // the piece that grows
  bool refused_ = false;
  bool finished_ = false;
};

}  // namespace mneme::gateway

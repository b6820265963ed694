#include "common/rpc/grpc_status.h"

#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace mneme::rpc {
namespace {

constexpr char kDomain[] = "mneme";
constexpr char kVersionKey[] = "version";

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // The numbers of the two enums are the same by design.
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const std::string message(status.message());
  google::rpc::Status details;
  if (const std::string field = status::PayloadOf(status, status::kFieldPayload); !field.empty()) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(field);
    violation->set_description(message);
    details.add_details()->PackFrom(bad_request);
  }
  if (int64_t retry_ms = 0;
      absl::SimpleAtoi(status::PayloadOf(status, status::kRetryAfterPayload), &retry_ms)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(retry_ms % 1000) * 1'000'000);
    details.add_details()->PackFrom(retry);
  }
  if (const std::string quota = status::PayloadOf(status, status::kQuotaPayload); !quota.empty()) {
    google::rpc::QuotaFailure failure;
    auto* violation = failure.add_violations();
    violation->set_subject(quota);
    violation->set_description(message);
    details.add_details()->PackFrom(failure);
  }
  if (const std::string reason = status::PayloadOf(status, status::kReasonPayload);
      !reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(reason);
    info.set_domain(kDomain);
    if (std::string version = status::PayloadOf(status, status::kVersionPayload);
        !version.empty()) {
      (*info.mutable_metadata())[kVersionKey] = std::move(version);
    }
    details.add_details()->PackFrom(info);
  }
  if (details.details_size() == 0) return grpc::Status(code, message);
  details.set_code(static_cast<int>(code));
  details.set_message(message);
  return grpc::Status(code, message, details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& grpc_status) {
  if (grpc_status.ok()) return absl::OkStatus();
  absl::Status status(static_cast<absl::StatusCode>(grpc_status.error_code()),
                      grpc_status.error_message());
  google::rpc::Status details;
  if (!details.ParseFromString(grpc_status.error_details())) return status;
  for (const auto& any : details.details()) {
    google::rpc::BadRequest bad_request;
    google::rpc::RetryInfo retry;
    google::rpc::QuotaFailure failure;
    google::rpc::ErrorInfo info;
    if (any.UnpackTo(&bad_request) && bad_request.field_violations_size() > 0) {
      status = status::WithPayload(status, status::kFieldPayload,
                                   bad_request.field_violations(0).field());
    } else if (any.UnpackTo(&retry)) {
      status = status::WithPayload(status, status::kRetryAfterPayload,
                                   absl::StrCat(retry.retry_delay().seconds() * 1000 +
                                                retry.retry_delay().nanos() / 1'000'000));
    } else if (any.UnpackTo(&failure) && failure.violations_size() > 0) {
      status = status::WithPayload(status, status::kQuotaPayload, failure.violations(0).subject());
    } else if (any.UnpackTo(&info)) {
      status = status::WithPayload(status, status::kReasonPayload, info.reason());
      const auto version = info.metadata().find(kVersionKey);
      if (version != info.metadata().end()) {
        status = status::WithPayload(status, status::kVersionPayload, version->second);
      }
    }
  }
  return status;
}

}  // namespace mneme::rpc

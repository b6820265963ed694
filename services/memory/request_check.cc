#include "services/memory/request_check.h"

#include <openssl/rand.h>
#include <openssl/sha.h>

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/trace/request_context.h"
#include "services/memory/family.h"

namespace mneme::memory {
namespace {

using status::InvalidField;

constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxTitleBytes = 1024;
constexpr int64_t kMaxTtlSeconds = int64_t{100} * 366 * 24 * 3600;
constexpr int64_t kDefaultLeaseMs = 30'000;
constexpr int64_t kMinLeaseMs = 1'000;
constexpr int64_t kMaxLeaseMs = 600'000;
constexpr int32_t kDefaultPageSize = 100;
constexpr int32_t kMaxPageSize = 1'000;
constexpr size_t kMadeUpIdBytes = 16;

absl::Status CheckIdentifier(absl::string_view field, const std::string& value) {
  if (trace::IsIdentifier(value)) return absl::OkStatus();
  return InvalidField(field, "must be 1 to 128 of A-Z a-z 0-9 _ . : -");
}

absl::Status CheckLength(absl::string_view field, const std::string& value, size_t max_bytes) {
  if (value.size() <= max_bytes) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("is longer than ", max_bytes, " bytes"));
}

template <typename Request>
absl::Status CheckSession(const Request& request) {
  RETURN_IF_ERROR(CheckIdentifier("tenant", request.tenant()));
  return CheckIdentifier("session_id", request.session_id());
}

absl::Status CheckRequestId(absl::string_view field, const std::string& request_id) {
  return request_id.empty() ? absl::OkStatus() : CheckIdentifier(field, request_id);
}

absl::Status CheckModel(const std::string& model) {
  if (model.empty()) return InvalidField("model", "is empty");
  return CheckLength("model", model, kMaxNameBytes);
}

template <typename Request>
absl::Status NormalizeLeaseTime(Request* request) {
  if (request->ttl_ms() == 0) request->set_ttl_ms(kDefaultLeaseMs);
  if (request->ttl_ms() >= kMinLeaseMs && request->ttl_ms() <= kMaxLeaseMs) {
    return absl::OkStatus();
  }
  return InvalidField("ttl_ms", absl::StrCat("must be ", kMinLeaseMs, " to ", kMaxLeaseMs, ": ",
                                             request->ttl_ms()));
}

template <typename Request>
absl::Status CheckLeaseToken(const Request& request) {
  return request.lease_token() != 0 ? absl::OkStatus() : InvalidField("lease_token", "is not set");
}

absl::Status CheckTtl(int64_t ttl_seconds) {
  if (ttl_seconds >= 0 && ttl_seconds <= kMaxTtlSeconds) return absl::OkStatus();
  return InvalidField("ttl_seconds",
                      absl::StrCat("must be 0 to ", kMaxTtlSeconds, ": ", ttl_seconds));
}

std::string MakeUpId(const std::string& tenant, const std::string& request_id) {
  unsigned char bytes[SHA256_DIGEST_LENGTH];
  if (request_id.empty()) {
    RAND_bytes(bytes, kMadeUpIdBytes);
  } else {
    const std::string text = absl::StrCat(tenant, "/", request_id);
    SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), bytes);
  }
  return absl::StrCat("s-", absl::BytesToHexString(absl::string_view(
                                reinterpret_cast<const char*>(bytes), kMadeUpIdBytes)));
}

}  // namespace

absl::Status Normalize(v1::CreateSessionRequest* request) {
  RETURN_IF_ERROR(CheckIdentifier("tenant", request->tenant()));
  RETURN_IF_ERROR(CheckRequestId("request_id", request->request_id()));
  if (request->session_id().empty()) {
    request->set_session_id(MakeUpId(request->tenant(), request->request_id()));
  }
  RETURN_IF_ERROR(CheckIdentifier("session_id", request->session_id()));
  RETURN_IF_ERROR(CheckModel(request->model()));
  RETURN_IF_ERROR(CheckLength("title", request->title(), kMaxTitleBytes));
  return CheckTtl(request->ttl_seconds());
}

absl::Status Normalize(v1::GetSessionRequest* request) { return CheckSession(*request); }

absl::Status Normalize(v1::ListSessionsRequest* request) {
  RETURN_IF_ERROR(CheckIdentifier("tenant", request->tenant()));
  if (request->page_size() == 0) request->set_page_size(kDefaultPageSize);
  if (request->page_size() < 1 || request->page_size() > kMaxPageSize) {
    return InvalidField("page_size",
                        absl::StrCat("must be 1 to ", kMaxPageSize, ": ", request->page_size()));
  }
  return CheckLength("model", request->model(), kMaxNameBytes);
}

absl::Status Normalize(v1::DeleteSessionRequest* request) { return CheckSession(*request); }

absl::Status Normalize(v1::AcquireLeaseRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  RETURN_IF_ERROR(CheckLength("holder", request->holder(), kMaxNameBytes));
  RETURN_IF_ERROR(CheckRequestId("request_id", request->request_id()));
  if (request->create()) RETURN_IF_ERROR(CheckModel(request->model()));
  return NormalizeLeaseTime(request);
}

absl::Status Normalize(v1::RenewLeaseRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  RETURN_IF_ERROR(CheckLeaseToken(*request));
  return NormalizeLeaseTime(request);
}

absl::Status Normalize(v1::ReleaseLeaseRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  return CheckLeaseToken(*request);
}

absl::Status Normalize(v1::CommitTurnRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  RETURN_IF_ERROR(CheckLeaseToken(*request));
  if (!request->has_turn()) return InvalidField("turn", "is not set");
  if (!request->snapshot_id().empty() && !IsTurnId(request->snapshot_id())) {
    return InvalidField("snapshot_id", "is not one that StageSnapshot has answered");
  }
  RETURN_IF_ERROR(CheckLength("executor", request->executor(), kMaxNameBytes));
  return CheckRequestId("turn.request_id", request->turn().request_id());
}

absl::Status Normalize(v1::StageSnapshotRequest::Header* header) {
  RETURN_IF_ERROR(CheckSession(*header));
  return CheckLeaseToken(*header);
}

absl::Status Normalize(v1::FetchSnapshotRequest* request) { return CheckSession(*request); }

absl::Status Normalize(v1::ForkSessionRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  RETURN_IF_ERROR(CheckRequestId("request_id", request->request_id()));
  if (request->new_session_id().empty()) {
    request->set_new_session_id(MakeUpId(request->tenant(), request->request_id()));
  }
  RETURN_IF_ERROR(CheckIdentifier("new_session_id", request->new_session_id()));
  return CheckLength("title", request->title(), kMaxTitleBytes);
}

absl::Status Normalize(v1::RewindSessionRequest* request) { return CheckSession(*request); }

absl::Status Normalize(v1::CompactSessionRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  if (!request->has_memory_policy() && request->encoding() == snapshot::v1::ENCODING_UNSPECIFIED &&
      !request->drop_older_snapshots()) {
    return InvalidField("memory_policy",
                        "nor encoding nor drop_older_snapshots is set: there is nothing to do");
  }
  if (request->encoding() != snapshot::v1::ENCODING_UNSPECIFIED &&
      request->encoding() != snapshot::v1::ENCODING_INT8 &&
      request->encoding() != snapshot::v1::ENCODING_FP8_E4M3) {
    return InvalidField("encoding", "must be int8 or fp8: entries get no more bits than they have");
  }
  if (!request->has_memory_policy()) return absl::OkStatus();
  const inference::v1::MemoryPolicy& policy = request->memory_policy();
  if (policy.policy_case() == inference::v1::MemoryPolicy::POLICY_NOT_SET) {
    return InvalidField("memory_policy", "names no policy");
  }
  if (!policy.has_window()) return absl::OkStatus();
  if (policy.window().sinks() < 0) {
    return InvalidField("memory_policy.window.sinks",
                        absl::StrCat("must be at least 0: ", policy.window().sinks()));
  }
  if (policy.window().recent() < 1) {
    return InvalidField("memory_policy.window.recent",
                        absl::StrCat("must be at least 1: ", policy.window().recent()));
  }
  return absl::OkStatus();
}

absl::Status Normalize(v1::DescribeSessionRequest* request) { return CheckSession(*request); }

absl::Status Normalize(v1::UpdateSessionRequest* request) {
  RETURN_IF_ERROR(CheckSession(*request));
  RETURN_IF_ERROR(CheckLength("title", request->title(), kMaxTitleBytes));
  return CheckTtl(request->ttl_seconds());
}

absl::Status Normalize(v1::ExportSessionRequest* request) { return CheckSession(*request); }

absl::Status Normalize(v1::ImportSessionRequest::Header* header) {
  RETURN_IF_ERROR(CheckIdentifier("tenant", header->tenant()));
  return header->session_id().empty() ? absl::OkStatus()
                                      : CheckIdentifier("session_id", header->session_id());
}

absl::Status Normalize(v1::ForgetTenantRequest* request) {
  return CheckIdentifier("tenant", request->tenant());
}

}  // namespace mneme::memory
